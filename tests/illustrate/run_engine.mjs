// Runs jobs with the page's engine: {page: URL of its folder, jobs} as JSON on standard input, a result for each on
// standard output. Numbers that JSON does not have, such as -Infinity, are null.

import { readFileSync } from "node:fs";

const { page, jobs } = JSON.parse(readFileSync(0, "utf8"));
const load = (name) => import(new URL(`${name}.js`, page));
const { ACTIVATIONS } = await load("engine/activations");
const { loadModel } = await load("engine/weights");
const { search } = await load("engine/search");
const { Tokenizer } = await load("engine/tokenizer");
const { Store } = await load("ui/store");

const RUN = {
  activations: ({ values }) =>
    Object.fromEntries(Object.entries(ACTIVATIONS).map(([name, f]) => [name, values.map((x) => f(x))])),

  tokenize({ tokenizer, texts, id_lists }) {
    const made = new Tokenizer(tokenizer);
    return {
      ids: texts.map((text) => made.encode(text)),
      source_ids: texts.map((text) => made.encodeSource(text)),
      texts: id_lists.map((ids) => made.decode(ids)),
      pieces: id_lists.map((ids) => made.pieces(ids)),
    };
  },

  forward({ payload, weights, pairs }) {
    const model = loadModel(payload, weights);
    return pairs.map(({ source, target }) => {
      const encoded = model.encode(source);
      let states = [model.startDecoding(encoded)];
      const step_log_probs = target.map((token) => {
        const step = model.step(states, [token]);
        states = step.states;
        return Array.from(step.logProbs.data);
      });
      const decoded = model.decode(encoded, target);
      const logits_of_last = Array.from(model.logits(decoded.output.data.slice(-payload.config.d_model)));
      return { encoder: plain(encoded), decoder: plain(decoded), step_log_probs, logits_of_last };
    });
  },

  search({ payload, weights, sources, settings }) {
    const model = loadModel(payload, weights);
    return settings.map((options) =>
      sources.map((source, i) => {
        const encoded = i % 2 ? model.encode(source) : undefined; // both ways
        const found = search(model, source, { ...options, encoded });
        return { ...found, nearest: nearestDecision(found) };
      }),
    );
  },

  press({ payload, weights, sentence, presses }) {
    const given = { ...payload, sentence, maxTokens: Infinity };
    const store = new Store(loadModel(payload, weights), new Tokenizer(payload.tokenizer), given);
    return presses.map(([step, token]) => {
      store.force(step, token);
      return { ids: store.written.ids, pressed: Array.from(store.pressed) };
    });
  },
};

/** Write matrices as lists of rows. */
function plain(value) {
  if (value?.data instanceof Float32Array) {
    const { data, rows, cols } = value;
    return Array.from({ length: rows }, (_, i) => Array.from(data.slice(i * cols, (i + 1) * cols)));
  }
  if (Array.isArray(value)) return value.map(plain);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, plain(part)]));
  }
  return value;
}

/** The smallest difference of two numbers whose order decided something in a search. */
function nearestDecision({ steps, nodes }) {
  const gaps = (values) => values.toSorted((a, b) => b - a).map((value, i, all) => (i ? all[i - 1] - value : Infinity));
  const candidates = steps.flatMap(({ alive, finished, dropped }) =>
    gaps([...alive, ...finished, ...dropped].map(({ logProb }) => logProb)),
  );
  const scores = gaps(nodes.map(({ score }) => score).filter((score) => score !== undefined));
  const ends = steps.map(({ bestPossible, toBeat }) => Math.abs(bestPossible - toBeat));
  return [...candidates, ...scores, ...ends].reduce((a, b) => Math.min(a, b), Infinity);
}

process.stdout.write(JSON.stringify(jobs.map((job) => RUN[job.run](job))));
