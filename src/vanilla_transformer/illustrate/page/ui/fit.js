// Drawings that depend on the width they get.

const widths = new Map();
const keys = new WeakMap();

const observer = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const { key, draw } = keys.get(target);
    const width = Math.floor(contentRect.width);
    if (width === 0 || target.drawnFor === width) continue;
    widths.set(key, width);
    target.drawnFor = width;
    target.replaceChildren(draw(width));
  }
});

// Fill `container` with draw(width) now, with the width that this key had last, and again when the width changes.
export function fit(key, container, draw) {
  const width = widths.get(key) ?? Math.min(document.documentElement.clientWidth - 64, 640);
  keys.set(container, { key, draw });
  container.drawnFor = width;
  container.replaceChildren(draw(width));
  observer.observe(container);
  return container;
}
