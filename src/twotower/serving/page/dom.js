// Elements out of data. Texts become text nodes, so nothing in a title is ever markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return node;
}

/** An element; attributes called `on...` are listeners. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An element of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** A bar as long as a share of its place, for the eye alone: the number stands beside it. */
export function bar(share, kind) {
  const fill = el("span", { class: `fill ${kind}` });
  fill.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return el("span", { class: "bar", "aria-hidden": "true" }, fill);
}

/** One of several elements is in the order of the Tab key; arrows go to the others. */
export function roving(container, selector) {
  const all = () => [...container.querySelectorAll(selector)];
  const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
  all().forEach((node, place) => node.setAttribute("tabindex", place ? "-1" : "0"));
  container.onkeydown = (event) => {
    const nodes = all();
    const at = nodes.indexOf(event.target.closest(selector));
    const ends = { Home: 0, End: nodes.length - 1 };
    const to = event.key in ends ? ends[event.key] : at + (steps[event.key] ?? 0);
    if (at < 0 || to === at || !nodes[to]) return;
    event.preventDefault();
    nodes[at].setAttribute("tabindex", "-1");
    nodes[to].setAttribute("tabindex", "0");
    nodes[to].focus();
  };
}

/** Draw a place anew; the keyboard stays where it was, by `data-key`, or close to it. */
export function redraw(box, ...children) {
  const before = box.contains(document.activeElement) ? document.activeElement : null;
  const place = before && [...box.querySelectorAll("[data-key]")].indexOf(before);
  const key = before?.dataset.key;
  box.replaceChildren(...children.flat().filter(Boolean));
  if (!key) return;
  const after = [...box.querySelectorAll("[data-key]")];
  const there = after.find((node) => node.dataset.key === key) ?? after[Math.min(place, after.length - 1)];
  there?.focus();
}

const WHOLE = new Intl.NumberFormat("en");

export const count = (number) => WHOLE.format(number);

export const plural = (number, one, many = `${one}s`) =>
  `${count(number)} ${number === 1 ? one : many}`;

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

export const milliseconds = (seconds) => {
  const value = 1000 * seconds;
  return `${value.toFixed(value < 1 ? 2 : value < 100 ? 1 : 0)} ms`;
};
