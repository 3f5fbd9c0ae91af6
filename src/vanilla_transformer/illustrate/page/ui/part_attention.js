// Part 2: self-attention in six steps, for the word that the reader clicks.

import { h, redraw } from "#page/ui/dom.js";
import { formula } from "#page/ui/formulas.js";
import { spoken, token } from "#page/ui/labels.js";
import { argmax, at, count, largest, number, probability, row } from "#page/ui/numbers.js";
import { numberChoice, section, slot, wordChoice } from "#page/ui/section.js";
import { strips } from "#page/ui/strips.js";
import { barCell, table } from "#page/ui/tables.js";

const PRODUCTS_WRITTEN = 3;

export function attentionPart(ctx) {
  const { store, texts } = ctx;
  const { config } = store.model;
  const dKey = config.d_model / config.encoder_attention_heads;
  const values = { dk: count(dKey), d: count(config.d_model), root: number(Math.sqrt(dKey)) };
  const controls = slot("controls sticky-controls");
  const [projections, scores, weighted, sum] = [slot(), slot(), slot(), slot()];
  const step = (number, formulas) =>
    h(
      "div",
      { class: "step" },
      h(
        "h3",
        {},
        h("span", { class: "step-number", "aria-hidden": "true" }, String(number)),
        h("span", {}, texts.rich(`attention.step${number}.title`, values)),
      ),
      texts.paragraphs(`attention.step${number}.text`, values),
      formulas,
    );
  const element = section(
    "attention",
    texts,
    formula("attention", ctx),
    controls,
    h(
      "div",
      { class: "block" },
      h("div", { class: "block-text" }, step(1)),
      h("div", { class: "block-picture" }, projections),
    ),
    h(
      "div",
      { class: "block" },
      h("div", { class: "block-text" }, step(2), step(3), step(4, formula("softmax", ctx))),
      h("div", { class: "block-picture" }, scores),
    ),
    h(
      "div",
      { class: "block" },
      h("div", { class: "block-text" }, step(5)),
      h("div", { class: "block-picture" }, weighted),
    ),
    h("div", { class: "block" }, h("div", { class: "block-text" }, step(6)), h("div", { class: "block-picture" }, sum)),
  );
  return {
    element,
    uses: ["text", "word", "layer", "head"],
    draw() {
      const { word, layer, head } = store.choices;
      const attention = store.encoded.layers[layer].selfAttention;
      const view = {
        word,
        name: spoken(store.pieces[word]),
        input: store.encoded.layers[layer].residuals[0].before,
        ...attention.heads[head],
      };
      redraw(
        controls,
        wordChoice(ctx, "attention"),
        numberChoice(ctx, "layer", "choose.layer", config.encoder_layers),
        numberChoice(ctx, "head", "choose.head", config.encoder_attention_heads),
      );
      redraw(projections, projectionPicture(ctx, view));
      redraw(scores, scoreTable(ctx, view), productLine(ctx, view));
      redraw(weighted, weightedPicture(ctx, view));
      redraw(sum, sumPicture(ctx, view));
    },
  };
}

function projectionPicture({ store, texts }, { word, name, input, query, key, value }) {
  const scale = largest([query.data, key.data, value.data]);
  const all = (matrix, symbol) =>
    store.pieces.map((piece, i) => ({
      label: [h("b", { class: `symbol ${symbol}` }, symbol), h("sub", {}, String(i)), " ", token(piece, 9)],
      name: `${symbol}${i} (${spoken(piece)})`,
      values: row(matrix, i),
      strong: i === word,
    }));
  return [
    strips(
      [
        {
          label: [h("b", { class: "symbol x" }, "x"), " ", token(store.pieces[word], 9)],
          name: `x (${name})`,
          values: row(input, word),
        },
      ],
      {
        texts,
        label: texts.t("attention.step1.input", { word: name }),
        key: "attention-input",
        table: false,
        hint: true,
      },
    ),
    strips(
      [
        {
          label: [h("b", { class: "symbol q" }, "q"), h("sub", {}, String(word)), " ", token(store.pieces[word], 9)],
          name: `q${word} (${name})`,
          values: row(query, word),
          strong: true,
        },
      ],
      { texts, scale, label: texts.t("attention.step1.query", { word: name }), key: "attention-query", table: false },
    ),
    h(
      "div",
      { class: "side-by-side" },
      h(
        "div",
        {},
        h("h4", {}, texts.t("attention.step1.keys")),
        strips(all(key, "k"), { texts, scale, label: texts.t("attention.step1.keys"), key: "attention-keys" }),
      ),
      h(
        "div",
        {},
        h("h4", {}, texts.t("attention.step1.values")),
        strips(all(value, "v"), { texts, scale, label: texts.t("attention.step1.values"), key: "attention-values" }),
      ),
    ),
  ];
}

function scoreTable({ store, texts }, { word, name, dots, scaled, weights, unscaledWeights }) {
  const most = largest([row(dots, word)]);
  const heads = [
    texts.t("table.token"),
    h("span", {}, h("span", { class: "step-number small" }, "2"), " q·k"),
    h("span", {}, h("span", { class: "step-number small" }, "3"), " ÷ √d", h("sub", {}, "k")),
    h("span", {}, h("span", { class: "step-number small" }, "4"), " softmax"),
    texts.t("attention.unscaled"),
  ];
  const lines = store.pieces.map((piece, i) => ({
    head: [h("span", { class: "index" }, String(i)), " ", token(piece, 10)],
    selected: i === word,
    cells: [
      barCell(number(at(dots, word, i)), at(dots, word, i) / most),
      barCell(number(at(scaled, word, i)), at(scaled, word, i) / most),
      barCell(probability(at(weights, word, i)), at(weights, word, i), "weight"),
      barCell(probability(at(unscaledWeights, word, i)), at(unscaledWeights, word, i), "outlined"),
    ],
  }));
  const largestOf = (matrix) => Math.max(...row(matrix, word));
  return [
    table(texts.t("attention.scores", { word: name }), heads, lines, "scores"),
    h(
      "p",
      { class: "remark" },
      texts.rich("attention.sharper", {
        scaled: h("b", {}, probability(largestOf(weights))),
        unscaled: h("b", {}, probability(largestOf(unscaledWeights))),
      }),
    ),
  ];
}

// q·k of the word that is looked at most, written out.
function productLine({ store, texts }, { word, query, key, dots, weights }) {
  const other = argmax(row(weights, word));
  const [q, k] = [row(query, word), row(key, other)];
  const signed = (value) => (value < 0 ? `(${number(value)})` : number(value));
  const products = Array.from(
    { length: Math.min(PRODUCTS_WRITTEN, q.length) },
    (_, i) => `${signed(q[i])} × ${signed(k[i])}`,
  ).join(" + ");
  return h(
    "p",
    { class: "remark" },
    texts.rich("attention.product", { word: token(store.pieces[word]), other: token(store.pieces[other]) }),
    " ",
    h("span", { class: "sum" }, `${products} + … = ${number(at(dots, word, other))}`),
  );
}

function weightedPicture({ store, texts }, { word, value, weights }) {
  const rows = store.pieces.map((piece, i) => {
    const weight = at(weights, word, i);
    return {
      label: [
        h("span", { class: "times" }, `${probability(weight)} ×`),
        " ",
        h("b", { class: "symbol v" }, "v"),
        h("sub", {}, String(i)),
        " ",
        token(piece, 8),
      ],
      name: `${probability(weight)} · v${i} (${spoken(piece)})`,
      values: row(value, i).map((x) => x * weight),
      strong: i === word,
    };
  });
  return strips(rows, {
    texts,
    scale: largest(rows.map((line) => line.values)),
    label: texts.t("attention.step5.picture"),
    key: "attention-weighted",
  });
}

function sumPicture({ store, texts }, { word, name, context }) {
  const z = row(context, word);
  return strips(
    [
      {
        label: [h("b", { class: "symbol z" }, "z"), h("sub", {}, String(word)), " ", token(store.pieces[word], 9)],
        name: `z${word} (${name})`,
        values: z,
        strong: true,
      },
    ],
    { texts, label: texts.t("attention.step6.picture", { word: name }), key: "attention-sum" },
  );
}
