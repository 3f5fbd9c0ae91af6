// What the reader sets. All are native controls, so that the keyboard and screen readers know them.

import { h, newId } from "#page/ui/dom.js";

// One of several, as a row of buttons (radio buttons): options [{value, label: node or text}].
export function choice(legend, options, value, change, { key, kind = "segments" }) {
  const name = newId(key);
  const items = options.map((option) => {
    const input = h("input", {
      type: "radio",
      name,
      value: option.value,
      checked: option.value === value,
      "data-key": `${key}-${option.value}`,
    });
    input.addEventListener("change", () => change(option.value));
    return h("label", { class: "option" }, input, h("span", {}, option.label));
  });
  return h("fieldset", { class: `choice ${kind}` }, h("legend", {}, legend), h("div", { class: "options" }, items));
}

// A slider with its value beside it.
export function slider(label, { min, max, step = 1, value, format = String, key }, change) {
  const id = newId(key);
  const output = h("output", { for: id }, format(value));
  const input = h("input", {
    type: "range",
    id,
    min,
    max,
    step,
    value,
    "data-key": key,
    "aria-valuetext": format(value),
  });
  input.addEventListener("input", () => {
    output.textContent = format(input.valueAsNumber);
    input.setAttribute("aria-valuetext", format(input.valueAsNumber));
    change(input.valueAsNumber);
  });
  return h("div", { class: "slider" }, h("label", { for: id }, label), input, output);
}

export function button(label, press, { key, ...attributes } = {}) {
  return h("button", { type: "button", "data-key": key, onclick: press, ...attributes }, label);
}

// A list to choose from.
export function select(label, options, value, change, { key }) {
  const id = newId(key);
  const list = h(
    "select",
    { id, "data-key": key },
    options.map((option) => h("option", { value: option.value, selected: option.value === value }, option.label)),
  );
  list.addEventListener("change", () => change(Number(list.value)));
  return h("div", { class: "select" }, h("label", { for: id }, label), list);
}

export const prefersStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
