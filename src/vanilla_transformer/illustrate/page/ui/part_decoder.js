// Part 5: the decoder, one token at a time.

import { button, choice, slider } from "#page/ui/controls.js";
import { h, redraw } from "#page/ui/dom.js";
import { fit } from "#page/ui/fit.js";
import { formula } from "#page/ui/formulas.js";
import { spoken, token } from "#page/ui/labels.js";
import { matrixPicture } from "#page/ui/matrix.js";
import { count, number, probability, row, top } from "#page/ui/numbers.js";
import { headPictures, viewChoice } from "#page/ui/part_heads.js";
import { block, numberChoice, section, slot } from "#page/ui/section.js";
import { strips } from "#page/ui/strips.js";
import { barCell, table } from "#page/ui/tables.js";

const TOKENS_SHOWN = 8;

export function decoderPart(ctx) {
  const { store, texts } = ctx;
  const { config } = store.model;
  const values = { vocabulary: count(config.vocab_size), d: count(config.d_model) };
  const controls = slot("controls sticky-controls decoder-controls");
  const [stepper, text] = [slot("stepper"), slot()];
  controls.append(stepper, text);
  const [masked, looking, output] = [slot(), slot(), slot()];
  const [maskedControls, lookingControls] = [slot("controls"), slot("controls")];
  const element = section(
    "decoder",
    texts,
    controls,
    block("decoder.masked", texts, { values, formulas: formula("mask", ctx) }, maskedControls, masked),
    block(
      "decoder.encoderAttention",
      texts,
      { values, formulas: formula("encoderAttention", ctx), wide: true },
      lookingControls,
      looking,
    ),
    block("decoder.output", texts, { values, formulas: formula("output", ctx) }, output),
  );
  return {
    element,
    uses: ["text", "step", "forced", "decoderLayer", "decoderHead", "view"],
    draw() {
      const { written } = store;
      const step = Math.min(store.choices.step, written.trace.ids.length - 1);
      const layer = written.trace.layers[store.choices.decoderLayer];
      redraw(stepper, stepControls(ctx, written, step));
      redraw(text, writtenText(ctx, written, step));
      redraw(
        maskedControls,
        numberChoice(ctx, "decoderLayer", "choose.layer", config.decoder_layers),
        numberChoice(ctx, "decoderHead", "choose.head", config.decoder_attention_heads),
      );
      redraw(masked, maskedPicture(ctx, written, layer.selfAttention.heads[store.choices.decoderHead], step));
      redraw(lookingControls, viewChoice(ctx), layerRepeated(ctx, config.decoder_layers));
      looking.classList.add("heads");
      redraw(
        looking,
        headPictures(ctx, layer.encoderAttention.heads, {
          from: written.read,
          to: store.pieces,
          selected: step,
          choose: (chosen) => ctx.set({ step: chosen }),
          key: "looking",
        }),
      );
      redraw(output, outputPicture(ctx, written, step));
    },
  };
}

// The same layer as above: a choice for each picture that depends on it.
function layerRepeated({ store, texts, set }, layers) {
  const options = Array.from({ length: layers }, (_, i) => ({ value: i, label: String(i + 1) }));
  return choice(texts.t("choose.layer"), options, store.choices.decoderLayer, (decoderLayer) => set({ decoderLayer }), {
    key: "decoderLayer-again",
  });
}

function writtenText({ store, texts }, { ids, pieces }, step) {
  return h(
    "ol",
    { class: "written", "aria-label": texts.t("decoder.written") },
    h("li", { class: "past" }, token(store.tokenizer.pieces([store.start])[0])),
    ids.map((_, i) =>
      h(
        "li",
        { class: i < step ? "past" : i === step ? "next" : "future", "aria-current": i === step ? "step" : undefined },
        token(pieces[i]),
        store.pressed.has(i) &&
          h(
            "span",
            { class: "forced", title: texts.t("decoder.forced") },
            "✎",
            h("span", { class: "visually-hidden" }, texts.t("decoder.forced")),
          ),
      ),
    ),
  );
}

function stepControls({ store, texts, set, unforce }, { trace }, step) {
  const last = trace.ids.length - 1;
  return [
    button(texts.t("decoder.previous"), () => set({ step: Math.max(step - 1, 0) }), {
      key: "decoder-previous",
      "aria-disabled": step === 0 ? "true" : undefined,
    }),
    button(texts.t("decoder.next"), () => set({ step: Math.min(step + 1, last) }), {
      key: "decoder-next",
      "aria-disabled": step === last ? "true" : undefined,
    }),
    slider(
      texts.t("decoder.step"),
      {
        min: 0,
        max: last,
        value: step,
        format: (i) => texts.t("decoder.of", { step: i + 1, last: last + 1 }),
        key: "decoder-step",
      },
      (chosen) => set({ step: chosen }),
    ),
    store.pressed.size > 0 && button(texts.t("decoder.reset"), unforce, { key: "decoder-reset" }),
  ];
}

function maskedPicture({ texts, set }, { read }, head, step) {
  const picture = (name, matrix, format) =>
    h(
      "figure",
      { class: "head" },
      h("figcaption", {}, h("b", {}, texts.t(`decoder.${name}`))),
      fit("masked", h("div", { class: "head-picture" }), (width) =>
        matrixPicture(matrix, width, {
          texts,
          rowPieces: read,
          colPieces: read,
          selected: step,
          choose: (chosen) => set({ step: chosen }),
          label: texts.t(`decoder.${name}`),
          format,
          key: `masked-${name}`,
          describe: (r, c, value) => texts.t("heads.value", { word: spoken(read[r]), other: spoken(read[c]), value }),
        }),
      ),
    );
  return h(
    "div",
    { class: "heads two" },
    picture("scores", head.scaled, number),
    picture("weights", head.weights, probability),
  );
}

function outputPicture({ store, texts, force }, { ids, pieces, read, trace }, step) {
  const [logits, probabilities] = [row(trace.logits, step), row(trace.probabilities, step)];
  const best = top(probabilities, TOKENS_SHOWN);
  const names = store.tokenizer.pieces(best);
  const rest = 1 - best.reduce((sum, id) => sum + probabilities[id], 0);
  const most = Math.max(...best.map((id) => Math.abs(logits[id])));
  const chosen = ids[step];
  const hidden = texts.t("decoder.hidden");
  const lines = best.map((id, i) => ({
    head: h(
      "button",
      {
        type: "button",
        class: "token-button",
        "data-key": `output-${i}`,
        "data-token": id,
        "aria-pressed": String(id === chosen),
        onclick: () => force(step, id),
      },
      token(names[i]),
      id === chosen && h("span", { class: "chosen", "aria-hidden": "true" }, " ✓"),
    ),
    selected: id === chosen,
    cells: [
      barCell(number(logits[id]), logits[id] / most),
      barCell(probability(probabilities[id]), probabilities[id], "weight"),
    ],
  }));
  lines.push({
    head: h("span", { class: "rest" }, texts.t("decoder.rest", { count: count(logits.length - best.length) })),
    cells: [h("td", {}), barCell(probability(Math.max(rest, 0)), Math.max(rest, 0), "weight")],
  });
  return [
    h(
      "p",
      { class: "remark" },
      texts.rich("decoder.after", {
        read: token(read[step]),
        next: pieces[step] === undefined ? "–" : token(pieces[step]),
      }),
    ),
    strips([{ label: hidden, name: hidden, values: row(trace.output, step) }], {
      texts,
      label: hidden,
      key: "decoder-hidden",
      table: false,
    }),
    table(texts.t("decoder.likely"), [texts.t("table.token"), "logit", texts.t("table.probability")], lines, "likely"),
    h("p", { class: "remark" }, texts.t("decoder.try")),
  ];
}
