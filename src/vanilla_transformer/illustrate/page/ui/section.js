// The frame that all seven parts share.

import { choice } from "#page/ui/controls.js";
import { h } from "#page/ui/dom.js";
import { token } from "#page/ui/labels.js";

export const PARTS = ["vectors", "attention", "heads", "sublayers", "decoder", "decoding", "training"];

// A part of the page: its number, heading and opening paragraphs, then blocks.
export function section(id, texts, ...content) {
  const place = PARTS.indexOf(id) + 1;
  return h(
    "section",
    { id: `part-${place}`, class: "part", "aria-labelledby": `heading-${place}`, tabindex: "-1" },
    h(
      "header",
      { class: "part-head" },
      h("span", { class: "part-number", "aria-hidden": "true" }, String(place)),
      h("h2", { id: `heading-${place}` }, texts.t(`${id}.title`)),
    ),
    h("div", { class: "lead" }, texts.paragraphs(`${id}.lead`)),
    content,
  );
}

// Text on the left, a picture on the right; below each other where there is no room. `key` names heading and text.
export function block(key, texts, { values, formulas, wide = false, level = 3 }, ...pictures) {
  return h(
    "div",
    { class: wide ? "block wide" : "block" },
    h(
      "div",
      { class: "block-text" },
      h(`h${level}`, {}, texts.rich(`${key}.title`, values)),
      texts.paragraphs(`${key}.text`, values),
      formulas,
    ),
    h("div", { class: "block-picture" }, pictures),
  );
}

// A place whose content is drawn anew when something changes.
export const slot = (className = "") => h("div", { class: `slot ${className}` });

// The words of the sentence, to choose one.
export function wordChoice(ctx, key, uses = "word") {
  const { store, texts, set } = ctx;
  const options = store.pieces.map((piece, i) => ({ value: i, label: token(piece) }));
  return choice(texts.t("choose.word"), options, store.choices[uses], (i) => set({ [uses]: i }), {
    key: `${key}-${uses}`,
    kind: "chips",
  });
}

// One of `count` layers or heads.
export function numberChoice(ctx, name, legend, count) {
  const options = Array.from({ length: count }, (_, i) => ({ value: i, label: String(i + 1) }));
  return choice(
    ctx.texts.t(legend),
    options,
    Math.min(ctx.store.choices[name], count - 1),
    (i) => ctx.set({ [name]: i }),
    { key: name },
  );
}
