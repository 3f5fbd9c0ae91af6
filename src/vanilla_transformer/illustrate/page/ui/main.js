// The page: reads the model, draws the parts, and redraws what a choice of the reader changes.

import { Tokenizer } from "#page/engine/tokenizer.js";
import { loadModel } from "#page/engine/weights.js";
import english from "#page/texts/en.js";
import korean from "#page/texts/ko.js";
import { choice } from "#page/ui/controls.js";
import { h, keepDraggedSliders, newId, redraw } from "#page/ui/dom.js";
import { count } from "#page/ui/numbers.js";
import { overview } from "#page/ui/overview.js";
import { attentionPart } from "#page/ui/part_attention.js";
import { decoderPart } from "#page/ui/part_decoder.js";
import { decodingPart } from "#page/ui/part_decoding.js";
import { headsPart } from "#page/ui/part_heads.js";
import { sublayersPart } from "#page/ui/part_sublayers.js";
import { trainingPart } from "#page/ui/part_training.js";
import { vectorsPart } from "#page/ui/part_vectors.js";
import { PARTS } from "#page/ui/section.js";
import { Store } from "#page/ui/store.js";
import { Texts } from "#page/ui/texts.js";

const LANGUAGES = { en: english, ko: korean };
const NAMES = { en: "English", ko: "한국어" };
const MAKERS = [vectorsPart, attentionPart, headsPart, sublayersPart, decoderPart, decodingPart, trainingPart];
const EVERYTHING = [
  "text",
  "word",
  "dimension",
  "swapOne",
  "swapOther",
  "layer",
  "head",
  "part3Layer",
  "view",
  "part4Layer",
  "step",
  "forced",
  "decoderLayer",
  "decoderHead",
  "numBeams",
  "lengthPenalty",
  "numResults",
  "classicStep",
  "playing",
];
const TRANSLATING = ["text", "numBeams", "lengthPenalty"]; // what the translation in the bar depends on
const NEAR = "300px"; // parts that are this near to the screen are drawn at once, the others when there is time

class Page {
  constructor(root, store) {
    Object.assign(this, { root, store, language: store.payload.language, parts: [] });
    this.near = new Set();
    this.observer = new IntersectionObserver((entries) => this.moved(entries), { rootMargin: `${NEAR} 0px` });
    this.build();
  }

  // Everything anew, in the current language.
  build() {
    for (const part of this.parts) part.leave?.();
    const texts = new Texts(this.language, LANGUAGES[this.language]);
    document.documentElement.lang = this.language;
    document.title = texts.t("page.title");
    this.ctx = {
      store: this.store,
      texts,
      payload: this.store.payload,
      set: (choices) => this.set(choices),
      write: (text) => this.write(text),
      force: (step, token) => this.change(() => this.store.force(step, token), ["forced"]),
      unforce: () => this.change(() => this.store.unforce(), ["forced", "step"]),
    };
    this.observer.disconnect();
    this.near.clear();
    this.parts = MAKERS.map((make) => ({ ...make(this.ctx), changed: new Set(EVERYTHING) }));
    this.main = h(
      "main",
      {},
      this.parts.map((part) => part.element),
    );
    this.bar = sentenceBar(this.ctx, (text, time) => this.typed(text, time));
    redraw(
      this.root,
      h("a", { class: "skip", href: "#part-1" }, texts.t("page.skip")),
      pageHead(this.ctx, this.language, (language) => this.speak(language)),
      this.bar.element,
      this.main,
      pageFoot(this.ctx),
    );
    this.bar.show();
    for (const part of this.parts) this.observer.observe(part.element);
    this.drawSome(this.parts.slice(0, 1));
    this.drawLater();
  }

  speak(language) {
    if (language === this.language) return;
    const before = this.parts.find(({ element }) => element.getBoundingClientRect().bottom > 0);
    const place = this.parts.indexOf(before);
    const top = before?.element.getBoundingClientRect().top;
    this.language = language;
    this.build();
    if (scrollY === 0 && top > 0) return;
    this.drawSome(this.parts); // all, so that the reader stays where they were
    scrollBy({ top: this.parts[place].element.getBoundingClientRect().top - top, behavior: "instant" });
  }

  set(choices) {
    this.change(() => Object.assign(this.store.choices, choices), Object.keys(choices));
  }

  // Put a text into the field, as if it had been typed.
  write(text) {
    this.bar.input.value = text;
    this.typed(text, performance.now());
  }

  // Draw what a new sentence changes, and measure how long it takes until it is on the screen.
  typed(text, time) {
    this.change(() => this.store.setText(text), ["text"]);
    requestAnimationFrame(() => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () =>
        performance.measure("key press", {
          start: time,
          end: performance.now(),
          detail: { tokens: this.store.ids.length },
        });
      port2.postMessage(null);
    });
  }

  change(act, keys) {
    act();
    if (keys.some((key) => TRANSLATING.includes(key))) this.bar.show();
    for (const part of this.parts) for (const key of keys) if (part.uses.includes(key)) part.changed.add(key);
    this.drawSome(this.parts.filter((part) => this.near.has(part.element)));
    this.drawLater();
  }

  drawSome(parts) {
    for (const part of parts) {
      if (part.changed.size === 0) continue;
      const { changed } = part;
      part.changed = new Set();
      part.draw(changed);
    }
  }

  // The parts that are out of sight, one at a time.
  drawLater() {
    clearTimeout(this.later);
    const waiting = this.parts.find((part) => part.changed.size > 0);
    this.main.setAttribute("aria-busy", String(Boolean(waiting)));
    if (!waiting) return;
    this.later = setTimeout(() => {
      this.drawSome([waiting]);
      this.drawLater();
    }, 120);
  }

  moved(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) this.near.add(target);
      else this.near.delete(target);
    }
    this.drawSome(this.parts.filter((part) => this.near.has(part.element)));
  }
}

function pageHead({ store, texts, payload }, language, speak) {
  const { config } = store.model;
  const options = Object.entries(NAMES).map(([value, name]) => ({ value, label: h("span", { lang: value }, name) }));
  const heads = [...new Set([config.encoder_attention_heads, config.decoder_attention_heads])];
  const facts = [
    ["model", payload.model.name],
    ["parameters", count(payload.model.parameters)],
    ["layers", `${config.encoder_layers} + ${config.decoder_layers}`],
    ["heads", heads.join(" / ")],
    ["dModel", count(config.d_model)],
    ["dKey", heads.map((head) => config.d_model / head).join(" / ")],
    ["ffn", count(config.encoder_ffn_dim)],
    ["vocabulary", count(config.vocab_size)],
  ];
  return h(
    "header",
    { class: "page-head" },
    h(
      "div",
      { class: "page-title" },
      h("h1", {}, texts.t("page.title")),
      choice(texts.t("page.language"), options, language, speak, { key: "language" }),
    ),
    h(
      "div",
      { class: "intro" },
      h(
        "div",
        { class: "intro-text" },
        texts.paragraphs("page.intro", {
          name: h("b", {}, h("bdi", {}, payload.model.name)),
          parameters: count(payload.model.parameters),
        }),
        h(
          "dl",
          { class: "facts" },
          facts.map(([name, value]) =>
            h("div", {}, h("dt", {}, texts.rich(`fact.${name}`)), h("dd", {}, h("bdi", {}, value))),
          ),
        ),
      ),
      overview({ store, texts }),
    ),
  );
}

// The sentence, its translation, and the way to the parts; it stays on the screen.
function sentenceBar({ store, texts, payload }, typed) {
  const id = newId("sentence");
  const input = h("input", {
    id,
    type: "text",
    dir: "auto",
    autocomplete: "off",
    spellcheck: "false",
    autocapitalize: "off",
    "data-key": "sentence",
    lang: payload.source_lang,
    placeholder: texts.t("sentence.placeholder"),
  });
  input.value = store.text;
  input.addEventListener("input", (event) => typed(input.value, event.timeStamp));
  const output = h("output", {
    for: id,
    class: "translation",
    id: "translation",
    lang: payload.target_lang,
    dir: "auto",
  });
  const amount = h("span", { class: "amount" });
  const links = PARTS.map((part, i) =>
    h(
      "li",
      {},
      h(
        "a",
        { href: `#part-${i + 1}` },
        h("span", { class: "nav-number" }, String(i + 1)),
        h("span", { class: "nav-name" }, texts.t(`${part}.short`)),
      ),
    ),
  );
  const element = h(
    "section",
    { class: "bar-top", "aria-label": texts.t("sentence.label") },
    h(
      "div",
      { class: "sentence" },
      h("label", { for: id }, texts.t("sentence.label")),
      input,
      amount,
      h("span", { class: "arrow", "aria-hidden": "true" }, "→"),
      h("span", { class: "visually-hidden" }, texts.t("sentence.translation")),
      output,
    ),
    h("nav", { "aria-label": texts.t("page.parts") }, h("ol", {}, links)),
  );
  return {
    element,
    input,
    show() {
      output.textContent = store.tokenizer.decode(store.beam().hypotheses[0].ids) || "∅";
      amount.textContent = texts.t(store.cut ? "sentence.tokensCut" : "sentence.tokens", { count: store.ids.length });
    },
  };
}

function pageFoot({ texts }) {
  return h("footer", { class: "page-foot" }, texts.paragraphs("page.foot"));
}

const payload = JSON.parse(document.getElementById("payload").textContent);
const model = loadModel(payload, document.getElementById("weights").textContent);
keepDraggedSliders();
new Page(document.getElementById("page"), new Store(model, new Tokenizer(payload.tokenizer), payload));
