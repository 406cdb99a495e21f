// Functions that tests call in a page, as members of `checks`.
() => {
  const channels = (css) => css.match(/[\d.]+/g).map(Number);

  function blend(above, below) {
    const alpha = above[3] ?? 1;
    return [0, 1, 2].map((channel) => alpha * above[channel] + (1 - alpha) * below[channel]);
  }

  function luminance(colour) {
    const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const [red, green, blue] = colour.map((value) => linear(value / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }

  function ground(element) {
    if (!element) return [255, 255, 255];
    const own = channels(getComputedStyle(element).backgroundColor);
    return (own[3] ?? 1) === 1 ? own : blend(own, ground(element.parentElement));
  }

  function contrast(element) {
    const svg = element.closest("svg");
    const below = ground(svg ? svg.closest("figure") : element);
    const style = getComputedStyle(element);
    const ink = blend(channels(svg ? style.fill : style.color), below);
    const [high, low] = [luminance(ink), luminance(below)].sort((one, other) => other - one);
    return (high + 0.05) / (low + 0.05);
  }

  // Whoever draws a text on a ground of its own, such as a cell of a heat map, sees to its contrast.
  const EXEMPT = "script, .own-ground, .hidden, legend";

  function contrasts() {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const poor = [];
    let texts = 0;
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      const text = walker.currentNode.textContent.trim();
      if (!text || element.closest(EXEMPT) || !element.checkVisibility()) continue;
      texts += 1;
      const ratio = contrast(element);
      if (ratio < 4.5) poor.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
    }
    return { texts, poor };
  }

  function name(element) {
    const label = element.ariaLabel ?? element.textContent.trim().slice(0, 30);
    return [element.tagName, element.id, element.getAttribute("href"), label].join(" ");
  }

  // In the order of the document; of a group of radio buttons, the checked one.
  function focusable() {
    const all = document.querySelectorAll("a[href], summary, button, input:checked, [tabindex='0']");
    return [...all].filter((each) => each.checkVisibility()).map(name);
  }

  function focused() {
    const element = document.activeElement;
    const outlined = element.closest("label") ?? element;
    const box = outlined.getBoundingClientRect();
    const inside = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
    return { name: name(element), outline: getComputedStyle(outlined).outlineStyle, inside };
  }

  window.checks = { contrasts, focusable, focused };
}
