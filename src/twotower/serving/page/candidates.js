// All candidates: where the retrieval had them and what the ranker made of that.

import { byId, count, draw, el, percent, roving } from "./dom.js";

const WIDTH = 640;
const HEIGHT = 170;
const EDGE = 10;

const COLUMNS = [
  { name: "was", of: (item) => item.retrieval_rank, title: "Rank of the retrieval" },
  { name: "item", of: (item) => item.title, title: "Title" },
  { name: "score", of: (item) => -item.retrieval_score, title: "Score of the retrieval" },
  { name: "prob.", of: (item) => -item.probability, title: "Probability of the ranker" },
  { name: "is", of: (item) => item.place, title: "Final place" },
];

let sorted = "was";

/** The table and the drawing; `open` is called with an item, `shown` is how many were shown. */
export function showCandidates(answer, shown, open) {
  const items = answer.items
    .map((item, at) => ({ ...item, place: at + 1 }))
    .filter((item) => item.retrieval_rank !== null);
  const box = byId("candidates");
  const ranked = items.length > 0 && items[0].probability !== null;
  byId("candidates-note").textContent = items.length ? count(items.length) : "none";
  if (!items.length) {
    box.replaceChildren();
    return;
  }
  const table = el("div", { class: "table", role: "region", "aria-labelledby": "candidates-title" });
  const fill = () => {
    table.replaceChildren(tableOf(items, { shown, ranked, open, sort }));
    roving(table.querySelector("tbody"), "button");
  };
  const sort = (name) => {
    sorted = name;
    fill();
    table.querySelector(`[data-sort="${name}"]`).focus();
  };
  fill();
  box.replaceChildren(...(ranked ? [drawing(items, shown)] : []), table);
}

function tableOf(items, { shown, ranked, open, sort }) {
  const columns = COLUMNS.filter(({ name }) => ranked || !["prob.", "is"].includes(name));
  const by = (columns.find(({ name }) => name === sorted) ?? columns[0]).of;
  const order = [...items].sort((a, b) => (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : 0));
  const head = columns.map(({ name, title }) =>
    el(
      "th",
      { scope: "col", "aria-sort": name === sorted ? "ascending" : null },
      el("button", { type: "button", title, "data-sort": name, onclick: () => sort(name) }, name),
    ),
  );
  const rows = order.map((item) => {
    const title = el("button", { type: "button", onclick: () => open(item) }, item.title);
    const cells = {
      was: item.retrieval_rank,
      item: title,
      score: item.retrieval_score.toFixed(3),
      "prob.": item.probability === null ? "" : percent(item.probability),
      is: item.place,
    };
    return el(
      "tr",
      { class: item.place <= shown ? "shown" : null },
      columns.map(({ name }) => el("td", { class: name === "item" ? null : "number" }, cells[name])),
    );
  });
  return el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows));
}

function drawing(items, shown) {
  const most = Math.max(...items.map((item) => item.probability));
  const last = Math.max(...items.map((item) => item.retrieval_rank));
  const dots = [...items].reverse().map((item) =>
    draw("circle", {
      class: item.place <= shown ? "shown" : null,
      cx: EDGE + ((WIDTH - 2 * EDGE) * (item.retrieval_rank - 1)) / Math.max(last - 1, 1),
      cy: HEIGHT - EDGE - ((HEIGHT - 2 * EDGE) * item.probability) / (most || 1),
      r: item.place <= shown ? 5 : 3,
    }),
  );
  const label =
    `Probability of the ranker over the rank of the retrieval, ${items.length} candidates; ` +
    "the table below says the same";
  return el(
    "figure",
    { class: "scatter" },
    draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, dots),
    el(
      "figcaption",
      { class: "quiet" },
      el("span", {}, "\u2191 probability"),
      el("span", {}, "rank of the retrieval \u2192"),
    ),
  );
}
