// The Transformer of "Attention Is All You Need" (Vaswani et al. 2017), in the order of the paper.
//
// Section and equation numbers are the paper's. Shapes are written [length, d_model]; `x` is what a layer reads and
// `memory` the encoder's output. Every intermediate result is kept, for the page shows it. It computes what
// modeling_vanilla_transformer.py does for one sentence, without dropout.

import { ACTIVATIONS } from "#page/engine/activations.js";
import {
  add,
  columns,
  concatenate,
  layerNorm,
  linear,
  logSoftmax,
  map,
  row,
  rows,
  softmax,
  times,
  timesTransposed,
  zeros,
} from "#page/engine/matrix.js";

const LAYER_NORM_EPSILON = 1e-5;

export class Model {
  /**
   * `config` and `generation` are those of the payload, `tensors` are matrices by name. Tied embeddings (section 3.4)
   * are one matrix, "shared.weight"; otherwise there are three.
   */
  constructor(config, generation, tensors) {
    this.config = config;
    this.generation = generation;
    const tensor = (name) => tensors[name] ?? tensors["shared.weight"];
    this.embeddings = {
      encoder: tensor("encoder.embed_tokens.weight"),
      decoder: tensor("decoder.embed_tokens.weight"),
    };
    this.outputMatrix = tensor("lm_head.weight"); // [vocabulary, d_model]
    this.activation = ACTIVATIONS[config.activation_function];
    this.encoderLayers = layersOf(tensors, "encoder", config.encoder_layers);
    this.decoderLayers = layersOf(tensors, "decoder", config.decoder_layers);
  }

  // 3.1 Encoder and decoder stacks

  /** Encode a source: its ids, `</s>` included. Without `positions` the encoder does not see the order of words. */
  encode(ids, { positions = true } = {}) {
    const embedding = this.embed(ids, "encoder", positions ? 0 : null);
    const layers = [];
    let x = embedding.sum;
    for (const weights of this.encoderLayers) {
      const layer = this.encoderLayer(x, weights);
      layers.push(layer);
      x = layer.residuals.at(-1).normalized;
    }
    return { ids, embedding, layers, output: x };
  }

  /** Self-attention, then feed-forward; each sub-layer gives LayerNorm(x + Sublayer(x)). */
  encoderLayer(x, weights) {
    const selfAttention = attention(x, x, weights.self_attn, this.config.encoder_attention_heads);
    const first = residual(x, selfAttention.output, weights.self_attn_layer_norm);
    const feedForward = this.feedForward(first.normalized, weights);
    const second = residual(first.normalized, feedForward.output, weights.final_layer_norm);
    return { selfAttention, feedForward, residuals: [first, second] };
  }

  /** Decode a target as far as it is known: `ids` begin with the start token. `source` is what `encode` gave. */
  decode(source, ids) {
    const embedding = this.embed(ids, "decoder");
    const layers = [];
    let x = embedding.sum;
    for (const weights of this.decoderLayers) {
      const layer = this.decoderLayer(x, source.output, weights);
      layers.push(layer);
      x = layer.residuals.at(-1).normalized;
    }
    const logits = this.outputLogits(x);
    return { ids, embedding, layers, output: x, logits, probabilities: softmax(logits) };
  }

  /** Masked self-attention, attention over the encoder's output, then feed-forward. */
  decoderLayer(x, memory, weights) {
    const heads = this.config.decoder_attention_heads;
    const selfAttention = attention(x, x, weights.self_attn, heads, true);
    const first = residual(x, selfAttention.output, weights.self_attn_layer_norm);
    const encoderAttention = attention(first.normalized, memory, weights.encoder_attn, heads);
    const second = residual(first.normalized, encoderAttention.output, weights.encoder_attn_layer_norm);
    const feedForward = this.feedForward(second.normalized, weights);
    const third = residual(second.normalized, feedForward.output, weights.final_layer_norm);
    return { selfAttention, encoderAttention, feedForward, residuals: [first, second, third] };
  }

  // 3.3 Position-wise feed-forward networks

  /** max(0, x W_1 + b_1) W_2 + b_2, equation 2: [length, d_model] to d_ff and back. */
  feedForward(x, weights) {
    const hidden = map(linear(x, weights.fc1), this.activation);
    return { input: x, hidden, output: linear(hidden, weights.fc2) };
  }

  // 3.4 Embeddings and softmax

  /**
   * Rows of the embedding matrix times sqrt(d_model), plus positions: each [length, d_model]. Positions are counted
   * from `first` on, by `stride`; with null in place of a first position there are none.
   */
  embed(ids, stack, first = 0, stride = 1) {
    const matrix = this.embeddings[stack];
    const embedded = zeros(ids.length, this.config.d_model);
    const scale = this.config.scale_embedding ? Math.sqrt(this.config.d_model) : 1;
    ids.forEach((id, i) => embedded.data.set(row(matrix, id).map((x) => x * scale), i * embedded.cols));
    const positions = first === null ? zeros(ids.length, embedded.cols) : this.positions(ids.length, first, stride);
    return { embedded, positions, sum: add(embedded, positions) };
  }

  /** The matrix before the softmax: [length, d_model] to [length, vocabulary]. */
  outputLogits(x) {
    return timesTransposed(x, this.outputMatrix);
  }

  /** The same for one position: a vector of d_model numbers to one for each token. */
  logits(hidden) {
    return this.outputLogits({ data: hidden, rows: 1, cols: hidden.length }).data;
  }

  // 3.5 Positional encoding

  /** The position of a sentence's first token. */
  get firstPosition() {
    return this.config.position_convention === "fairseq" ? this.config.pad_token_id + 1 : 0;
  }

  /**
   * PE(pos, 2i) = sin(pos / 10000^(2i/d_model)), PE(pos, 2i+1) = cos(...) for `length` positions: first,
   * first + stride, and so on.
   *
   * The convention "fairseq" counts from pad_token_id + 1 and divides by d_model - 2.
   */
  positions(length, first = 0, stride = 1) {
    const { d_model, position_convention } = this.config;
    const width = position_convention === "fairseq" ? d_model - 2 : d_model;
    const encoding = zeros(length, d_model);
    for (let even = 0; even < d_model; even += 2) {
      const frequency = Math.fround(Math.exp(Math.fround((even * -Math.log(10000)) / width)));
      for (let i = 0; i < length; i++) {
        const position = this.firstPosition + first + i * stride;
        const angle = Math.fround(position * frequency);
        encoding.data[i * d_model + even] = Math.sin(angle);
        encoding.data[i * d_model + even + 1] = Math.cos(angle);
      }
    }
    return encoding;
  }

  // Decoding one position at a time, for the search: keys and values of earlier positions are kept

  /** The state before the first token. The source's keys and values are computed once, and shared by all states. */
  startDecoding(source) {
    const layers = this.decoderLayers.map(({ encoder_attn }) => ({
      target: { keys: [], values: [] },
      source: {
        keys: rows(linear(source.output, encoder_attn.k_proj)),
        values: rows(linear(source.output, encoder_attn.v_proj)),
      },
    }));
    return { position: 0, layers };
  }

  /**
   * Continue hypotheses of one length by a token each. Returns the log-probabilities of the next token, [hypotheses,
   * vocabulary], and the states after it; a state stays as it is, so that several hypotheses can go on from it.
   */
  step(states, tokens) {
    const heads = this.config.decoder_attention_heads;
    const { position } = states[0];
    let x = this.embed(tokens, "decoder", position, 0).sum;
    const newStates = states.map(() => ({ position: position + 1, layers: [] }));
    this.decoderLayers.forEach((weights, i) => {
      const newKeys = rows(linear(x, weights.self_attn.k_proj));
      const newValues = rows(linear(x, weights.self_attn.v_proj));
      states.forEach(({ layers }, n) => {
        const { target, source } = layers[i];
        const keys = [...target.keys, newKeys[n]];
        const values = [...target.values, newValues[n]];
        newStates[n].layers.push({ target: { keys, values }, source });
      });
      const cached = (part) => newStates.map(({ layers }) => layers[i][part]); // "target" or "source", of each hypothesis
      const attended = attendEach(x, cached("target"), weights.self_attn, heads);
      x = residual(x, attended, weights.self_attn_layer_norm).normalized;
      const read = attendEach(x, cached("source"), weights.encoder_attn, heads);
      x = residual(x, read, weights.encoder_attn_layer_norm).normalized;
      x = residual(x, this.feedForward(x, weights).output, weights.final_layer_norm).normalized;
    });
    return { logProbs: logSoftmax(this.outputLogits(x)), states: newStates };
  }
}

/** x + Sublayer(x), and the same normalized (sections 3.1 and 5.4). */
function residual(before, subLayer, weights) {
  const sum = add(before, subLayer);
  return { before, subLayer, sum, normalized: layerNorm(sum, weights) };
}

// 3.2 Attention

/**
 * Multi-head attention (section 3.2.2) from each position of `x` to those of `memory`: to itself, or to the encoder's
 * output. With `causal` a position sees none after it.
 */
function attention(x, memory, weights, headCount, causal = false) {
  const query = linear(x, weights.q_proj);
  const key = linear(memory, weights.k_proj);
  const value = linear(memory, weights.v_proj);
  const width = query.cols / headCount; // d_k
  const heads = [];
  for (let h = 0; h < headCount; h++) {
    const [q, k, v] = [query, key, value].map((matrix) => columns(matrix, h * width, (h + 1) * width));
    heads.push(scaledDotProductAttention(q, k, v, causal));
  }
  const concatenated = concatenate(heads.map((head) => head.context));
  return { query, key, value, heads, concatenated, output: linear(concatenated, weights.out_proj) };
}

/**
 * softmax(Q K^T / sqrt(d_k)) V, equation 1: `query` [n, d_k], `key` and `value` [m, d_k].
 *
 * `dots`, `scaled` and the weights are [n, m]; `scaled` is minus infinity where a position may not look.
 */
function scaledDotProductAttention(query, key, value, causal) {
  const dots = timesTransposed(query, key);
  const scale = 1 / Math.sqrt(query.cols);
  const scaled = map(dots, (x) => x * scale);
  const unscaled = map(dots, (x) => x);
  if (causal) for (const scores of [scaled, unscaled]) maskLaterPositions(scores);
  const weights = softmax(scaled);
  return {
    query,
    key,
    value,
    dots,
    scaled,
    weights,
    unscaledWeights: softmax(unscaled),
    context: times(weights, value),
  };
}

/** Section 3.2.3: "masking out (setting to -inf) all values ... which correspond to illegal connections". */
function maskLaterPositions(scores) {
  for (let i = 0; i < scores.rows; i++) scores.data.fill(-Infinity, i * scores.cols + i + 1, (i + 1) * scores.cols);
}

/**
 * Multi-head attention from each row of `x`, [n, d_model], to keys and values of its own: those of `memories[i]` are
 * lists of vectors of length d_model, one for each position that row i sees.
 */
function attendEach(x, memories, weights, headCount) {
  const query = linear(x, weights.q_proj);
  const width = query.cols / headCount; // d_k
  const concatenated = zeros(query.rows, query.cols);
  for (let i = 0; i < query.rows; i++) {
    const q = row(query, i);
    const { keys, values } = memories[i];
    const scores = zeros(headCount, keys.length);
    keys.forEach((key, j) => {
      for (let h = 0; h < headCount; h++) {
        let dot = 0;
        for (let k = h * width; k < (h + 1) * width; k++) dot += q[k] * key[k];
        scores.data[h * scores.cols + j] = dot / Math.sqrt(width);
      }
    });
    const attention = softmax(scores);
    const sums = new Float64Array(query.cols);
    values.forEach((value, j) => {
      for (let k = 0; k < sums.length; k++) {
        sums[k] += attention.data[Math.floor(k / width) * attention.cols + j] * value[k];
      }
    });
    concatenated.data.set(sums, i * query.cols);
  }
  return linear(concatenated, weights.out_proj);
}

/** Arrange the tensors of a stack by layer and part: layers[0].self_attn.q_proj.weight. */
function layersOf(tensors, stack, count) {
  const linearOf = (name) => ({ weight: tensors[`${name}.weight`], bias: tensors[`${name}.bias`] });
  const attentionOf = (name) =>
    Object.fromEntries(["q_proj", "k_proj", "v_proj", "out_proj"].map((part) => [part, linearOf(`${name}.${part}`)]));
  const normOf = (name) => ({ ...linearOf(name), epsilon: LAYER_NORM_EPSILON });
  return Array.from({ length: count }, (_, i) => {
    const layer = `${stack}.layers.${i}`;
    const parts = {
      self_attn: attentionOf(`${layer}.self_attn`),
      self_attn_layer_norm: normOf(`${layer}.self_attn_layer_norm`),
      fc1: linearOf(`${layer}.fc1`),
      fc2: linearOf(`${layer}.fc2`),
      final_layer_norm: normOf(`${layer}.final_layer_norm`),
    };
    if (stack === "encoder") return parts;
    return {
      ...parts,
      encoder_attn: attentionOf(`${layer}.encoder_attn`),
      encoder_attn_layer_norm: normOf(`${layer}.encoder_attn_layer_norm`),
    };
  });
}
