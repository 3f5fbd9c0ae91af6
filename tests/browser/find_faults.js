() => {
  const faults = [];
  const root = document.scrollingElement;
  if (root.scrollWidth > innerWidth) faults.push(`the page is ${root.scrollWidth} px wide`);
  const hidden = (element) => {
    for (let e = element; e && e !== document.body; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (style.visibility === "hidden" || style.display === "none" || style.clipPath !== "none") return true;
    }
    return false;
  };
  const scroller = (element) => element.closest(".scroll, .bar-top, .skip, math, select, option");
  const boxes = [];
  const walker = document.createTreeWalker(document.getElementById("page"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const parent = node.parentElement;
    if (!node.data.trim() || hidden(parent)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      if (box.width < 1 || box.height < 1) continue;
      if (!scroller(parent) && (box.left < -1 || box.right > innerWidth + 1)) faults.push(`outside: ${node.data}`);
      const clip = parent.closest("svg");
      if (clip) {
        const frame = clip.getBoundingClientRect();
        if (
          box.left < frame.left - 2 ||
          box.right > frame.right + 2 ||
          box.top < frame.top - 3 ||
          box.bottom > frame.bottom + 3
        )
          faults.push(`cut: ${node.data} in ${clip.getAttribute("class")}`);
      }
      if (parent.closest(".bar-top, .skip, math, sub, sup")) continue;
      const [x, y] = [Math.min(1.5, box.width / 4), box.height * 0.28];
      boxes.push({
        node,
        left: box.left + x,
        right: box.right - x,
        top: box.top + y,
        bottom: box.bottom - y,
        in: parent.closest(".scroll"),
      });
    }
  }
  for (const box of document.querySelectorAll(
    "td, th, button, legend, .option > span, .token-list li, .fact, dd, dt, label, figcaption, caption",
  )) {
    if (hidden(box) || box.closest(".bar-top")) continue;
    if (
      box.scrollWidth > box.clientWidth + 2 &&
      box.clientWidth > 0 &&
      getComputedStyle(box).display !== "inline" &&
      getComputedStyle(box).textOverflow !== "ellipsis"
    )
      faults.push(`too wide for its box: ${box.textContent.slice(0, 40)} (${box.tagName} ${box.className})`);
  }
  boxes.sort((a, b) => a.top - b.top);
  for (let i = 0; i < boxes.length; i++) {
    for (let j = i + 1; j < boxes.length && boxes[j].top < boxes[i].bottom; j++) {
      const [a, b] = [boxes[i], boxes[j]];
      if (a.node === b.node || a.in !== b.in) continue;
      if (a.left < b.right && b.left < a.right) faults.push(`overlap: ${a.node.data} | ${b.node.data}`);
    }
  }
  return [...new Set(faults)].slice(0, 20);
};
