// The plane in which item vectors differ most, with what is known of this request.

import { byId, draw, el, roving } from "./dom.js";

const SIZE = 400;
const REACH = 1.25;
const CLOSE_UP_MARGIN = 1.3;
const SMALLEST_REACH = 0.02;
const NEAR = 14;
const GROUPS = 12;
const MARKS = [
  { name: "history", text: "history" },
  { name: "candidate", text: "candidates" },
  { name: "final", text: "shown" },
];
const NOTHING = { history: [], candidate: [], final: [] };

let background = [];
let groups = [];
let marked = NOTHING;
let opened = null;
let view = { x: 0, y: 0, reach: REACH };
let open = () => {};
let svg;
let tip;

const place = (point) => ({
  x: (SIZE / 2) * (1 + (point.x - view.x) / view.reach),
  y: (SIZE / 2) * (1 - (point.y - view.y) / view.reach),
});

/** The points of a bundle; `opens` is called with an item. */
export function showMap(points, opens) {
  background = points;
  open = opens;
  marked = NOTHING;
  groups = [...new Set(points.map(({ group }) => group).filter(Boolean))].sort();
  svg = draw(
    "svg",
    { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "group", "aria-labelledby": "map-title" },
    draw("g", { class: "background" }),
    draw("g", { class: "marks" }),
  );
  tip = el("div", { class: "tip", "aria-hidden": "true", hidden: true });
  svg.addEventListener("pointermove", (event) => hint(nearest(event)));
  svg.addEventListener("pointerleave", () => hint(null));
  svg.addEventListener("click", (event) => {
    const found = nearest(event);
    if (found) open(found.item);
  });
  const legend = MARKS.map(({ name, text }) =>
    el("li", {}, el("span", { class: `mark ${name}`, "aria-hidden": "true" }), text),
  );
  const colours = groups.map((group, at) =>
    el("li", {}, el("span", { class: `mark group g${at % GROUPS}`, "aria-hidden": "true" }), group),
  );
  byId("map").replaceChildren(
    el("div", { class: "plane" }, svg, tip),
    el("ul", { class: "legend" }, legend),
    el("ul", { class: "legend groups" }, colours),
  );
  byId("map-close-up").onclick = () => look(byId("map-close-up").ariaPressed !== "true");
  look(false);
}

/** Mark the items of a request: lists of points by the names of the marks. */
export function markMap(points) {
  marked = points;
  look(byId("map-close-up").ariaPressed === "true");
}

/** Mark the item whose panel is open; null for none. */
export function markOpen(itemId) {
  opened = itemId;
  drawMarks();
}

/** Say which point an item is; null for none. */
export const pointAt = (itemId) => hint(find(itemId));

const marks = () => [...marked.final, ...marked.history, ...marked.candidate];

const find = (itemId) =>
  [...marks(), ...background].find(({ item }) => item.item_id === itemId) ?? null;

// All of the map, or the part of it where the items are that are shown.
function look(closely) {
  const points = closely ? marked.final : [];
  byId("map-close-up").ariaPressed = String(closely);
  view = { x: 0, y: 0, reach: REACH };
  if (points.length) {
    const range = (name) => {
      const values = points.map((point) => point[name]);
      return [Math.min(...values), Math.max(...values)];
    };
    const [[left, right], [low, high]] = [range("x"), range("y")];
    const reach = (CLOSE_UP_MARGIN * Math.max(right - left, high - low)) / 2;
    view = { x: (left + right) / 2, y: (low + high) / 2, reach: Math.max(reach, SMALLEST_REACH) };
  }
  const dots = background.map((point) => {
    const group = groups.indexOf(point.group);
    return circle(point, group < 0 ? null : `group g${group % GROUPS}`, closely ? 3.5 : 2);
  });
  svg.querySelector(".background").replaceChildren(...dots);
  drawMarks();
}

function drawMarks() {
  const group = svg?.querySelector(".marks");
  if (!group) return;
  const ring = find(opened);
  group.replaceChildren(
    ...marked.candidate.map((point) => circle(point, "candidate", 3)),
    ...marked.history.map((point) => diamond(point)),
    ...(ring ? [circle(ring, "opened", 13)] : []),
    ...marked.final.map((point, rank) => numbered(point, rank + 1)).reverse(),
  );
  roving(group, ".final");
}

function circle(point, name, r) {
  const { x, y } = place(point);
  return draw("circle", { class: name, cx: x, cy: y, r });
}

function diamond(point) {
  const { x, y } = place(point);
  const d = `M${x} ${y - 5.5}l5.5 5.5l-5.5 5.5l-5.5-5.5z`;
  return draw("path", { class: "history", d });
}

function numbered(point, rank) {
  const { x, y } = place(point);
  return draw(
    "g",
    {
      class: "final",
      role: "button",
      "aria-label": `${rank}: ${point.item.title}`,
      transform: `translate(${x} ${y})`,
      onfocus: () => hint(point),
      onblur: () => hint(null),
      onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        open(point.item);
      },
    },
    draw("circle", { r: 8.5 }),
    draw("text", { "text-anchor": "middle", dy: "0.35em" }, String(rank)),
  );
}

function nearest(event) {
  const box = svg.getBoundingClientRect();
  const scale = SIZE / box.width;
  const [x, y] = [scale * (event.clientX - box.left), scale * (event.clientY - box.top)];
  let found = null;
  let best = NEAR * scale;
  // What is marked wins over the points that it covers.
  for (const [points, handicap] of [[marks(), 0], [background, 4 * scale]]) {
    for (const point of points) {
      const there = place(point);
      const distance = Math.hypot(there.x - x, there.y - y) + handicap;
      if (distance < best) [found, best] = [point, distance];
    }
  }
  return found;
}

function hint(point) {
  if (!svg) return;
  const { x, y } = point ? place(point) : { x: -1, y: -1 };
  tip.hidden = x < 0 || x > SIZE || y < 0 || y > SIZE;
  svg.classList.toggle("pointing", !tip.hidden);
  if (tip.hidden) return;
  tip.textContent = point.group ? `${point.item.title} \u00b7 ${point.group}` : point.item.title;
  tip.style.left = `${Math.min(Math.max((100 * x) / SIZE, 30), 70)}%`;
  tip.style.top = `${(100 * y) / SIZE}%`;
  tip.classList.toggle("below", y < 40);
}
