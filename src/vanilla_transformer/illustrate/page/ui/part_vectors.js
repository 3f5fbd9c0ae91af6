// Part 1: from words to vectors.

import { chart, legend } from "#page/ui/chart.js";
import { button, select, slider } from "#page/ui/controls.js";
import { addCursor } from "#page/ui/cursor.js";
import { h, redraw, svg } from "#page/ui/dom.js";
import { fit } from "#page/ui/fit.js";
import { formula } from "#page/ui/formulas.js";
import { shorten, spoken, token, visible } from "#page/ui/labels.js";
import { count, distance, number, row } from "#page/ui/numbers.js";
import { block, section, slot, wordChoice } from "#page/ui/section.js";
import { scrollable, strips } from "#page/ui/strips.js";
import { barCell, table } from "#page/ui/tables.js";

const POSITIONS_SHOWN = 32;
const DIMENSIONS_WORKED = 4;

export function vectorsPart(ctx) {
  const { store, texts } = ctx;
  const { config } = store.model;
  const [tokens, embedding, picture, wave, swap] = [slot(), slot(), slot(), slot(), slot()];
  const values = {
    d: count(config.d_model),
    root: number(embeddingScale(config)),
    vocabulary: count(config.vocab_size),
    first: String(store.model.firstPosition),
  };
  const sum = { values, formulas: formula("embedding", ctx) };
  const fairseq = config.position_convention === "fairseq";
  const waves = [
    formula("positions", ctx),
    fairseq && h("p", { class: "remark" }, texts.rich("vectors.positions.fairseq", values)),
  ];
  const element = section(
    "vectors",
    texts,
    block("vectors.tokens", texts, { values, formulas: formula("bpe", ctx), wide: true }, tokens),
    config.scale_embedding
      ? block("vectors.embedding", texts, sum, embedding)
      : block("vectors.unscaled", texts, sum, embedding),
    block("vectors.positions", texts, { values, formulas: waves }, picture, pairSlider(ctx), wave),
    block("vectors.swap", texts, { values }, swap),
  );
  return {
    element,
    uses: ["text", "word", "dimension", "swapOne", "swapOther"],
    draw(changed) {
      const { pieces } = store;
      if (changed.has("text")) redraw(tokens, tokenList(ctx));
      if (changed.has("text") || changed.has("word"))
        redraw(embedding, wordChoice(ctx, "vectors"), embeddingPicture(ctx));
      // Positions are the same whatever stands there: most key presses leave these two as they are.
      const { word, dimension } = store.choices;
      const [rows, name] = [Math.max(POSITIONS_SHOWN, store.ids.length), pieces[word]];
      drawIfOther(picture, [rows, word, name], () => redraw(picture, positionPicture(ctx)));
      drawIfOther(wave, [rows, word, dimension], () => redraw(wave, wavePicture(ctx)));
      if (changed.has("text") || changed.has("swapOne") || changed.has("swapOther"))
        redraw(swap, pieces.length > 2 ? swapPicture(ctx) : h("p", { class: "remark" }, texts.t("vectors.swap.few")));
    },
  };
}

// Draw what `values` decide, unless it is what was drawn last.
function drawIfOther(place, values, draw) {
  const drawn = JSON.stringify(values);
  if (place.drawn === drawn) return;
  place.drawn = drawn;
  draw();
}

const embeddingScale = (config) => (config.scale_embedding ? Math.sqrt(config.d_model) : 1);

function tokenList({ store, texts }) {
  return [
    h(
      "ol",
      { class: "token-list", "aria-label": texts.t("vectors.tokens.list") },
      store.pieces.map((piece, i) => h("li", {}, token(piece), h("span", { class: "token-id" }, String(store.ids[i])))),
    ),
    store.cut && h("p", { class: "remark" }, texts.t("sentence.cut", { count: store.ids.length })),
  ];
}

function embeddingPicture({ store, texts }) {
  const { word } = store.choices;
  const { config, firstPosition } = store.model;
  const { embedded, positions, sum } = store.encoded.embedding;
  const scale = embeddingScale(config);
  const shown = [
    ["row", row(embedded, word).map((value) => value / scale)],
    ["scaled", config.scale_embedding && row(embedded, word)],
    ["position", row(positions, word)],
    ["sum", row(sum, word)],
  ].filter(([, vector]) => vector);
  const vectors = shown.map(([, vector]) => vector);
  const names = shown.map(([name]) =>
    texts.t(`vectors.embedding.${name}`, { root: number(scale), position: firstPosition + word }),
  );
  const last = vectors.length - 1;
  const head = [
    texts.t("table.vector"),
    ...Array.from({ length: DIMENSIONS_WORKED }, (_, i) => texts.t("table.dimension", { dimension: i })),
  ];
  const lines = vectors.map((vector, i) => ({
    head: names[i],
    selected: i === last,
    cells: Array.from(vector.subarray(0, DIMENSIONS_WORKED), (value) => h("td", {}, number(value))),
  }));
  return [
    strips(
      vectors.map((vector, i) => ({ label: names[i], name: names[i], values: vector, strong: i === last })),
      { texts, label: texts.t("vectors.embedding.strips"), key: "embedding-strips", table: false, hint: true },
    ),
    scrollable(
      texts,
      texts.t("vectors.embedding.worked"),
      table(texts.t("vectors.embedding.worked"), head, lines, "worked"),
      "worked",
    ),
  ];
}

// All positions below each other: one line of bars each.
function positionPicture({ store, texts }) {
  const { word } = store.choices;
  const { firstPosition } = store.model;
  const positions = store.model.positions(Math.max(POSITIONS_SHOWN, store.ids.length));
  const { rows, cols } = positions;
  const dimensionOf = (c) => (c < cols / 2 ? 2 * c : 2 * c - cols + 1); // sines first, then cosines
  const drawing = svg("svg", {
    viewBox: `0 0 ${cols} ${rows}`,
    preserveAspectRatio: "none",
    class: "position-picture",
    "aria-hidden": "true",
  });
  drawing.style.blockSize = `${rows * 11}px`;
  let [up, down] = ["", ""];
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < cols; c++) {
      const value = positions.data[r * cols + dimensionOf(c)];
      const height = Math.abs(value) * 0.9;
      const path = `M${c} ${(r + 0.5 - height / 2).toFixed(3)}h1v${height.toFixed(3)}h-1z`;
      if (value >= 0) up += path;
      else if (height > 0.02) down += `M${c + 0.3} ${(r + 0.5 - height / 2).toFixed(3)}h.4v${height.toFixed(3)}h-.4z`;
    }
  }
  const mark = svg("path", { class: "mark", d: "" });
  drawing.append(
    svg("path", { d: up, class: "positive" }),
    svg("path", { d: down, class: "negative" }),
    svg("path", { d: `M${cols / 2} 0V${rows}`, class: "boundary" }),
    svg("rect", { x: 0, y: word, width: cols, height: 1, class: "selected" }),
    mark,
  );
  const area = h(
    "div",
    { "data-key": "position-picture", class: "position-area" },
    h(
      "div",
      { class: "position-axis", "aria-hidden": "true" },
      h("span", {}, texts.t("axis.sines")),
      h("span", {}, texts.t("axis.cosines")),
    ),
    drawing,
  );
  const readout = addCursor(area, {
    rows,
    cols,
    start: [word, 0],
    label: `${texts.t("vectors.positions.picture")}. ${texts.t("hint.arrows")}`,
    hint: texts.t("vectors.positions.hint", { position: firstPosition + word, word: spoken(store.pieces[word]) }),
    describe: (r, c) =>
      texts.t("vectors.positions.value", {
        position: firstPosition + r,
        dimension: dimensionOf(c),
        value: number(positions.data[r * cols + dimensionOf(c)]),
      }),
    locate: (event) => {
      const box = drawing.getBoundingClientRect();
      const r = Math.floor(((event.clientY - box.top) / box.height) * rows);
      const c = Math.floor(((event.clientX - box.left) / box.width) * cols);
      return r >= 0 && r < rows && c >= 0 && c < cols ? [r, c] : null;
    },
    mark: (r, c) => mark.setAttribute("d", r === null ? "" : `M0 ${r + 0.5}H${cols}M${c + 0.5} 0V${rows}`),
  });
  return [area, readout];
}

// Which pair of dimensions the waves show.
function pairSlider({ store, texts, set }) {
  const last = store.model.config.d_model / 2 - 1;
  const format = (i) => `${2 * i}, ${2 * i + 1}`;
  return slider(
    texts.t("vectors.positions.pair"),
    { min: 0, max: last, value: store.choices.dimension, format, key: "dimension" },
    (dimension) => set({ dimension }),
  );
}

function wavePicture({ store, texts }) {
  const { firstPosition } = store.model;
  const positions = store.model.positions(Math.max(POSITIONS_SHOWN, store.ids.length));
  const { cols } = positions;
  const pair = store.choices.dimension;
  const curve = (offset) =>
    Array.from({ length: positions.rows }, (_, i) => [firstPosition + i, positions.data[i * cols + 2 * pair + offset]]);
  const series = [
    { name: texts.t("vectors.positions.sine", { dimension: 2 * pair }), points: curve(0), kind: "first", dots: true },
    { name: texts.t("vectors.positions.cosine", { dimension: 2 * pair + 1 }), points: curve(1), kind: "second" },
  ];
  return [
    legend(series),
    fit("wave", h("div", {}), (width) =>
      chart(width, {
        series,
        xLabel: texts.t("axis.position"),
        yLabel: "",
        height: 170,
        low: -1,
        now: firstPosition + store.choices.word,
        label: texts.t("vectors.positions.wave", { even: 2 * pair, odd: 2 * pair + 1 }),
      }),
    ),
  ];
}

function swapPicture({ store, texts, set, write }) {
  const { ids, pieces, model, encoded } = store;
  const [one, other] = [store.choices.swapOne, store.choices.swapOther];
  const places = ids.map((_, i) => (i === one ? other : i === other ? one : i)); // token i stands at places[i] afterwards
  const swapped = places.map((place) => ids[place]);
  const after = model.encode(swapped).output;
  const [orderless, orderlessAfter] = [ids, swapped].map((order) => model.encode(order, { positions: false }).output);
  const moved = ids.map((_, i) => distance(row(encoded.output, i), row(after, places[i])));
  const unmoved = ids.map((_, i) => distance(row(orderless, i), row(orderlessAfter, places[i])));
  const most = Math.max(...moved, 1e-9);
  const line = (order, name) =>
    h(
      "div",
      { class: "swap-line" },
      h("span", { class: "swap-name" }, name),
      h(
        "span",
        { class: "swap-tokens" },
        order.map((i) =>
          h("span", { class: i === one || i === other ? "swap-token moved" : "swap-token" }, token(pieces[i])),
        ),
      ),
    );
  const options = pieces.slice(0, -1).map((piece, i) => ({ value: i, label: `${i}: ${shorten(visible(piece), 16)}` }));
  const choose = (name) => (i) => set({ [name]: i });
  const translation = (order) =>
    h("bdi", { class: "translation" }, store.tokenizer.decode(store.greedy(order).hypotheses[0].ids) || "∅");
  return [
    h(
      "div",
      { class: "controls" },
      select(texts.t("vectors.swap.one"), options, one, choose("swapOne"), { key: "swap-one" }),
      select(texts.t("vectors.swap.other"), options, other, choose("swapOther"), { key: "swap-other" }),
      button(texts.t("vectors.swap.write"), () => write(store.tokenizer.decode(swapped)), { key: "swap-write" }),
    ),
    line(
      ids.map((_, i) => i),
      texts.t("vectors.swap.before"),
    ),
    line(places, texts.t("vectors.swap.after")),
    h(
      "dl",
      { class: "pairs" },
      h("dt", {}, texts.t("vectors.swap.translation.before")),
      h("dd", {}, translation(ids)),
      h("dt", {}, texts.t("vectors.swap.translation.after")),
      h("dd", {}, translation(swapped)),
    ),
    table(
      texts.t("vectors.swap.table"),
      [texts.t("table.token"), texts.t("vectors.swap.with"), texts.t("vectors.swap.without")],
      pieces.map((piece, i) => ({
        head: token(piece),
        selected: i === one || i === other,
        cells: [barCell(number(moved[i]), moved[i] / most), barCell(number(unmoved[i]), unmoved[i] / most)],
      })),
    ),
  ];
}
