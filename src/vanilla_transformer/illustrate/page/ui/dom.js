// Elements without innerHTML: whatever comes from the model or the reader ends up in a text node.

const SVG = "http://www.w3.org/2000/svg";
const MATH = "http://www.w3.org/1998/Math/MathML";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

// An HTML element: h("button", {class: "step", onclick: next}, "Next"). Attributes that are null, undefined or false are left out.
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// An SVG element.
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// A MathML element.
export function math(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(MATH, tag), attributes, children);
}

let dragged = null; // a slider; one that is replaced under the pointer no longer follows it
const postponed = new Map(); // containers of the slider, with what they will hold once it is let go

function letGo() {
  dragged = null;
  const waiting = [...postponed];
  postponed.clear();
  for (const [container, children] of waiting) redraw(container, children);
}

const letGoLater = () => setTimeout(letGo); // not before the browser has done what it does at the end of a drag

// From now on sliders stay in their places while the pointer drags them.
export function keepDraggedSliders() {
  addEventListener("pointerdown", ({ target }) => {
    letGo();
    dragged = target.closest("input[type=range]");
    dragged?.addEventListener("change", letGoLater);
  });
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, letGoLater);
}

// Redraw a container: scrolled boxes stay scrolled and opened tables open, and the focus goes to the element with the
// same data-key, or to the part where that is gone.
export function redraw(container, ...children) {
  if (container.contains(dragged)) {
    postponed.set(container, children);
    return;
  }
  const active = document.activeElement;
  const key = container.contains(active) ? active.closest("[data-key]")?.dataset.key : undefined;
  const opened = [...container.querySelectorAll("[data-open][open]")].map((details) => details.dataset.open);
  const scrolled = [...container.querySelectorAll("[data-scroll]")].map((box) => [box.dataset.scroll, box.scrollLeft]);
  container.replaceChildren(...children.flat(Infinity).filter(Boolean));
  for (const name of opened) {
    const details = container.querySelector(`[data-open="${name}"]`);
    if (!details) continue;
    details.open = true;
    details.dispatchEvent(new Event("toggle")); // the browser's own comes after the next frame: too late to fill it
  }
  for (const [name, left] of scrolled) {
    const box = container.querySelector(`[data-scroll="${name}"]`);
    if (box) box.scrollLeft = left;
  }
  if (key === undefined) return;
  const same = container.querySelector(`[data-key="${CSS.escape(key)}"]`);
  (same ?? container.closest(".part"))?.focus({ preventScroll: true });
}

let lastId = 0;

// An id for aria-labelledby and for labels.
export function newId(prefix) {
  lastId += 1;
  return `${prefix}-${lastId}`;
}

// A name may come twice in a text, a node can't.
const copy = (value) => (value instanceof Node ? value.cloneNode(true) : value);

// Text with **bold**, *italic*, `code`, *d*_k (an index), *W*^O (an exponent) and {name}, where `values` has the strings
// or nodes for the names.
export function rich(text, values = {}) {
  const fragment = document.createDocumentFragment();
  for (const part of text.split(/(\*\*.+?\*\*|\*.+?\*|`.+?`|\{\w+\}|(?<=\*)[_^][a-zA-Z]+)/)) {
    if (part.startsWith("**")) fragment.append(h("b", {}, rich(part.slice(2, -2), values)));
    else if (part.length > 1 && part.startsWith("*")) fragment.append(h("i", {}, rich(part.slice(1, -1), values)));
    else if (/^_\w+$/.test(part)) fragment.append(h("sub", {}, part.slice(1)));
    else if (/^\^\w+$/.test(part)) fragment.append(h("sup", {}, part.slice(1)));
    else if (part.length > 1 && part.startsWith("`")) fragment.append(h("code", {}, part.slice(1, -1)));
    else if (/^\{\w+\}$/.test(part) && part.slice(1, -1) in values) fragment.append(copy(values[part.slice(1, -1)]));
    else fragment.append(part);
  }
  return fragment;
}

// The same as a plain string, for labels that only screen readers see.
export function plain(text, values = {}) {
  return text.replace(/\{(\w+)\}/g, (match, name) => (name in values ? String(values[name]) : match));
}
