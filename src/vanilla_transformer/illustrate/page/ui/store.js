// What the reader chose, and what the model makes of it; each result is computed once and when it is first needed.

import { argmax } from "#page/ui/numbers.js";
import { lengthLimit, search } from "#page/engine/search.js";

const KEPT_SEARCHES = 24;

export class Store {
  constructor(model, tokenizer, payload) {
    Object.assign(this, { model, tokenizer, payload });
    const { generation, maxTokens } = payload;
    this.maxTokens = maxTokens; // of the sentence; what is longer is cut, and the page says so
    this.start = generation.decoder_start_token_id;
    this.ends = [generation.eos_token_id].flat();
    this.choices = {
      word: 0,
      layer: 0,
      head: 0,
      view: "lines",
      part3Layer: 0,
      part4Layer: 0,
      decoderLayer: 0,
      decoderHead: 0,
      swapOne: 0,
      swapOther: 1,
      dimension: 0,
      step: 0,
      numBeams: generation.num_beams,
      lengthPenalty: generation.length_penalty,
      numResults: Math.min(3, generation.num_beams),
      classicStep: 0,
    };
    this.forced = []; // with what the decoder of part 5 has to begin, up to the last token that the reader pressed
    this.pressed = new Set(); // the places of those that were pressed
    this.setText(payload.sentence);
  }

  // A new sentence: everything that was computed for the last one is forgotten.
  setText(text) {
    this.text = text;
    const ids = Array.from(this.tokenizer.encodeSource(text));
    this.cut = ids.length > this.maxTokens;
    this.ids = this.cut ? [...ids.slice(0, this.maxTokens - 1), ids.at(-1)] : ids;
    this.pieces = this.tokenizer.pieces(this.ids);
    this.searches = new Map();
    this.memory = null;
    this.forgetForced();
    const last = this.ids.length - 1;
    this.choices.word = Math.min(this.choices.word, Math.max(last - 1, 0));
    this.choices.swapOne = 0;
    this.choices.swapOther = Math.max(last - 1, 0);
    this.choices.step = 0;
  }

  get encoded() {
    this.memory ??= this.model.encode(this.ids);
    return this.memory;
  }

  // The search's result for the sentence (or for other ids); numBeams 1 is greedy.
  found({ numBeams, lengthPenalty, numReturnSequences, ids = this.ids }) {
    const key = `${numBeams} ${lengthPenalty} ${numReturnSequences} ${ids.join()}`;
    if (!this.searches.has(key)) {
      if (this.searches.size > KEPT_SEARCHES) this.searches.clear();
      const encoded = ids === this.ids ? this.encoded : undefined;
      this.searches.set(key, search(this.model, ids, { numBeams, lengthPenalty, numReturnSequences, encoded }));
    }
    return this.searches.get(key);
  }

  greedy(ids) {
    return this.found({ numBeams: 1, lengthPenalty: 0, numReturnSequences: 1, ids });
  }

  beam(ids) {
    const { numBeams, lengthPenalty, numResults } = this.choices;
    return this.found({ numBeams, lengthPenalty, numReturnSequences: Math.min(numResults, numBeams), ids });
  }

  // What the decoder of part 5 writes: the reader's tokens, then the most likely ones. {ids, pieces, trace}, where row t
  // of the trace has read the start token and the first t of the ids.
  get written() {
    if (this.path) return this.path;
    const ids = this.forced.length ? this.goOn(this.forced) : [...this.greedy().hypotheses[0].ids];
    const whole = this.ends.includes(ids.at(-1)) ? ids.slice(0, -1) : ids;
    const trace = this.model.decode(this.encoded, [this.start, ...whole]);
    const pieces = this.tokenizer.pieces(ids);
    this.path = {
      ids,
      pieces,
      read: [...this.tokenizer.pieces([this.start]), ...pieces].slice(0, trace.ids.length),
      trace,
    };
    return this.path;
  }

  // The most likely tokens after some given ones, one at a time, until the end token or the limit of the search.
  goOn(given) {
    const ids = [...given];
    const limit = Math.max(lengthLimit(this.model.generation, this.ids.length), given.length);
    let { states, logProbs } = this.model.step([this.model.startDecoding(this.encoded)], [this.start]);
    for (let i = 0; !this.ends.includes(ids[i - 1]) && i < limit; i++) {
      ids[i] ??= argmax(logProbs.data);
      ({ states, logProbs } = this.model.step(states, [ids[i]]));
    }
    return ids;
  }

  // Put `token` after the first `step` tokens of the decoder's text.
  force(step, token) {
    this.forced = [...this.written.ids.slice(0, step), token];
    this.pressed = new Set([...this.pressed].filter((place) => place < step)).add(step);
    this.path = null;
  }

  forgetForced() {
    this.forced = [];
    this.pressed = new Set();
    this.path = null;
  }

  unforce() {
    this.forgetForced();
    this.choices.step = 0;
  }
}
