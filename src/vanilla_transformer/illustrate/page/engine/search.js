// The paper's search (section 6.1): beam search with the length penalty of Wu et al. 2016, one sentence at a time.
//
// It is that of generation_vanilla_transformer.py. Sums of log-probabilities are rounded to 32 bits at the same places,
// so that equal scores are equal here too.

import { row } from "#page/engine/matrix.js";

/** ((5 + |Y|) / 6)^alpha (Wu et al. 2016, equation 14), for |Y| generated tokens, `</s>` included. */
export function lengthPenaltyOf(length, alpha) {
  return ((5 + length) / 6) ** alpha;
}

/**
 * Search for the hypotheses Y with the highest log P(Y|X) / ((5 + |Y|) / 6)^alpha. With one beam alpha is 0 and the
 * search is greedy. `encoded` is what the model's encoder makes of the source, where that is known already.
 *
 * Returns the best hypotheses, best first, and what happened at each step, to draw the tree. A node is {id, parent,
 * token, logProb}: the hypothesis that ends with this token, and its log-probability. Node 0 is the start token.
 * `nodes[id]` has each alive and finished one. `bestPossible` is the best score that an alive hypothesis can still
 * reach, `toBeat` the worst score among the results so far; the search goes on while the first is greater.
 */
export function search(model, sourceIds, options = {}) {
  const { numBeams = 4, lengthPenalty = 0.6, numReturnSequences = 1, encoded = model.encode(sourceIds) } = options;
  const alpha = numBeams > 1 ? lengthPenalty : 0;
  const limit = lengthLimit(model.generation, sourceIds.length, options.maxNewTokens);
  const ends = new Set(model.generation.eos_token_id);
  // If each beam is continued by every end token, `numBeams` candidates that do not end remain.
  const candidateCount = numBeams * (ends.size ? 1 + model.generation.eos_token_id.length : 2);

  const start = { id: 0, parent: null, token: model.generation.decoder_start_token_id, logProb: 0, length: 0 };
  start.state = model.startDecoding(encoded);
  const nodes = [start];
  let alive = [start];
  let finished = [];
  const steps = [];

  for (let length = 1; length <= limit; length++) {
    const candidates = bestContinuations(model, alive, candidateCount);
    const ended = (candidate) => ends.has(candidate.token) || length === limit;
    // An end counts only among the best `numBeams` candidates; the others are there to fill the places of these.
    const newlyFinished = candidates.slice(0, numBeams).filter(ended);
    const goingOn = candidates.filter((candidate) => !ended(candidate)).slice(0, numBeams);
    const penalty = Math.fround(lengthPenaltyOf(length, alpha));
    for (const node of newlyFinished) node.score = Math.fround(node.logProb / penalty);
    for (const node of [...goingOn, ...newlyFinished]) {
      node.id = nodes.length;
      node.length = length;
      nodes.push(node);
    }
    const dropped = candidates.filter((candidate) => candidate.id === undefined);
    alive = goingOn;
    finished = [...finished, ...newlyFinished].sort((a, b) => b.score - a.score).slice(0, numBeams);

    // At best the first alive hypothesis keeps its log-probability and gets the most favourable length.
    const favourable = Math.fround(lengthPenaltyOf(alpha >= 0 ? limit : length + 1, alpha));
    const bestPossible = alive.length ? Math.fround(alive[0].logProb / favourable) : -Infinity;
    const toBeat = finished[numReturnSequences - 1]?.score ?? -Infinity;
    const canImprove = bestPossible > toBeat;
    for (const node of [...newlyFinished, ...dropped]) delete node.state;
    steps.push({ alive, finished: newlyFinished, dropped, canImprove, bestPossible, toBeat });
    if (!canImprove) break;
  }
  for (const node of alive) delete node.state;
  const hypotheses = finished.slice(0, numReturnSequences).map((node) => ({
    node: node.id,
    ids: idsOf(node, nodes),
    score: node.score,
    logProb: node.logProb,
    length: node.length,
  }));
  return { hypotheses, steps, nodes };
}

/** How many tokens may be generated: at most 50 more than the source has (section 6.1), or a smaller limit. */
export function lengthLimit(generation, sourceLength, maxNewTokens) {
  const limit = maxNewTokens ?? generation.max_new_tokens ?? Infinity;
  return Math.min(limit, sourceLength + generation.tokens_beyond_source);
}

/** Find the `count` most likely continuations of the alive hypotheses by one token, best first. */
function bestContinuations(model, alive, count) {
  const { logProbs, states } = model.step(
    alive.map(({ state }) => state),
    alive.map(({ token }) => token),
  );
  const candidates = [];
  alive.forEach((node, i) => {
    const ofNode = row(logProbs, i);
    for (const token of greatest(ofNode, count)) {
      const logProb = Math.fround(node.logProb + ofNode[token]);
      if (logProb > -Infinity) candidates.push({ parent: node.id, token, logProb, state: states[i] });
    }
    delete node.state; // the state before its token is read
  });
  return candidates.sort((a, b) => b.logProb - a.logProb).slice(0, count);
}

/** The indices of the `count` greatest values, greatest first. */
function greatest(values, count) {
  const best = []; // indices, greatest value first
  for (let i = 0; i < values.length; i++) {
    if (best.length === count && !(values[i] > values[best[count - 1]])) continue;
    if (best.length === count) best.pop();
    let place = best.length;
    while (place > 0 && values[best[place - 1]] < values[i]) place--;
    best.splice(place, 0, i);
  }
  return best;
}

/** The tokens from the first generated one to that of a node. */
function idsOf(node, nodes) {
  const ids = [];
  for (let at = node; at.parent !== null; at = nodes[at.parent]) ids.unshift(at.token);
  return ids;
}
