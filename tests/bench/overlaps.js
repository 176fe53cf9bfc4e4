// Text that covers other text: pairs of visible texts whose boxes meet by more than 2 px across and 4 px down. Text under
// the sticky bar of filters is hidden by it and not counted; nor is what a table scrolled away.
() => {
  const boxes = [];
  const inside = (element) => element.closest("svg.marker, noscript, dialog, #filter-box") !== null;
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].filter((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own.length || inside(element) || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (element.tagName === "OPTION" || element.tagName === "SCRIPT" || element.tagName === "STYLE") continue;
    const clip = element.closest(".scroll, pre")?.getBoundingClientRect();
    for (const node of own) {
      const range = document.createRange();
      range.selectNodeContents(node);
      for (const box of range.getClientRects()) {
        if (box.width < 1 || (clip && (box.left < clip.left || box.right > clip.right))) continue;
        const fixed = element.closest("th[scope=row], thead th:first-child") !== null;
        boxes.push({ left: box.left, right: box.right, top: box.top + scrollY, bottom: box.bottom + scrollY, text: node.textContent.trim(), element, fixed });
      }
    }
  }
  boxes.sort((a, b) => a.top - b.top);
  const found = [];
  boxes.forEach((a, i) => {
    for (let j = i + 1; j < boxes.length && boxes[j].top < a.bottom - 2; j++) {
      const b = boxes[j];
      if (a.element === b.element || a.fixed !== b.fixed && a.element.closest("table") === b.element.closest("table")) continue;
      const [x, y] = [Math.min(a.right, b.right) - Math.max(a.left, b.left), Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)];
      if (x > 2 && y > 4) found.push([a.text.slice(0, 40), b.text.slice(0, 40), Math.round(x), Math.round(y)]);
    }
  });
  return found;
}
