// Figure 1 of the paper as a map of the page.

import { h } from "#page/ui/dom.js";

const ENCODER = [
  ["feedForward", 4],
  ["selfAttention", 2, 3],
  ["embedding", 1],
];
const DECODER = [
  ["output", 5, 6],
  ["feedForward", 4],
  ["encoderAttention", 5],
  ["maskedAttention", 5],
  ["embedding", 1],
];

export function overview({ texts, store }) {
  const { config } = store.model;
  const stack = (name, boxes, layers) => {
    const drawn = boxes.map(([box, ...parts]) =>
      h(
        "li",
        { class: `map-box ${box}` },
        h("span", { class: "map-name" }, texts.t(`map.${box}`)),
        h(
          "span",
          { class: "map-links" },
          parts.map((part) =>
            h(
              "a",
              { href: `#part-${part}`, "aria-label": texts.t("map.part", { box: texts.t(`map.${box}`), part }) },
              String(part),
            ),
          ),
        ),
      ),
    );
    return h(
      "div",
      { class: `map-stack ${name}` },
      h("h2", {}, texts.t(`map.${name}`, { layers })),
      h("ol", {}, drawn),
    );
  };
  return h(
    "div",
    { class: "map" },
    stack("encoder", ENCODER, config.encoder_layers),
    h("span", { class: "map-arrow", "aria-hidden": "true" }),
    stack("decoder", DECODER, config.decoder_layers),
    h(
      "p",
      { class: "map-training" },
      texts.rich("map.training", { link: h("a", { href: "#part-7" }, texts.t("map.training.link")) }),
    ),
  );
}
