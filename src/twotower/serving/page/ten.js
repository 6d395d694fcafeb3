// The items that are shown, and how long that took.

import { bar, byId, count, el, milliseconds, percent, redraw } from "./dom.js";
import { pointAt } from "./map.js";

const STAGES = {
  features: "features",
  query_tower: "query tower",
  index: "index",
  filters: "filters",
  ranker: "ranker",
  describe: "titles and reasons",
};

/** The list; `open` and `add` are called with an item. */
export function showTen(answer, { open, add }) {
  const best = Math.max(...answer.items.map((item) => item.probability ?? 0), 0);
  redraw(
    byId("ten"),
    answer.items.map((item, place) =>
      el(
        "li",
        {
          "data-item": item.item_id,
          onpointerenter: () => pointAt(item.item_id),
          onpointerleave: () => pointAt(null),
        },
        el("span", { class: "place", "aria-hidden": "true" }, place + 1),
        el(
          "div",
          { class: "what" },
          el("button", { type: "button", class: "title", onclick: () => open(item) }, item.title),
          el("span", { class: "quiet" }, ` ${item.item_id}`),
          el("p", { class: "quiet" }, item.reason),
        ),
        figures(item, best),
        el(
          "button",
          {
            type: "button",
            class: "bare add",
            "data-key": `add ${place}`,
            title: "Add to the history",
            "aria-label": `Add ${item.title} to the history`,
            onclick: () => add(item),
          },
          "+",
        ),
      ),
    ),
  );
  byId("ten-note").textContent = note(answer);
}

function figures({ probability, retrieval_score: score, retrieval_rank: rank }, best) {
  const shown = el("div", { class: "figures" });
  if (probability !== null) {
    shown.append(
      el("span", { class: "hidden" }, "probability "),
      el("span", { class: "number ranker", title: "Probability of the ranker" }, percent(probability)),
      bar(best ? probability / best : 0, "ranker"),
    );
  }
  if (score !== null) {
    shown.append(
      el(
        "span",
        { class: "number retrieval", title: "Score and rank of the retrieval" },
        el("span", { class: "hidden" }, "retrieval "),
        score.toFixed(3),
        el("span", { class: "rank" }, ` #${rank}`),
      ),
    );
  }
  return shown;
}

function note({ items, missing, source }) {
  if (source === "popular") return "Nothing is known of this visitor: popular items.";
  if (missing) return `${items.length} of ${items.length + missing}: the filters leave no more.`;
  return "";
}

/** How many items each stage keeps. */
export function showFunnel({ num_items: all, num_candidates: some, has_ranker: ranked }) {
  const steps = [
    [count(all), "items", ""],
    [count(some), "candidates", "retrieval"],
    ["10", "shown", ranked ? "ranker" : "retrieval"],
  ];
  byId("funnel").replaceChildren(
    ...steps.map(([number, name, kind]) =>
      el("li", { class: kind }, el("strong", {}, number), ` ${name}`),
    ),
  );
}

/** One bar with a part for every stage, and the same in words. */
export function showLatency({ seconds, roundTrip }) {
  const stages = Object.entries(seconds ?? {});
  const inside = stages.reduce((sum, [, value]) => sum + value, 0);
  const total = Math.max(roundTrip, inside);
  const rest = ["way", total - inside];
  const parts = [...stages, rest].map(([name, value]) => {
    const part = el("span", { class: `stage ${name}` });
    part.style.flexGrow = String(value / total);
    return part;
  });
  const words = [...stages, rest].map(([name, value]) =>
    el(
      "li",
      {},
      el("span", { class: `dot ${name}`, "aria-hidden": "true" }),
      `${name === "way" ? "queue and network" : (STAGES[name] ?? name.replaceAll("_", " "))} `,
      el("span", { class: "number" }, milliseconds(value)),
    ),
  );
  byId("latency").replaceChildren(
    el("p", { class: "quiet" }, "Answered in ", el("strong", {}, milliseconds(total))),
    el("div", { class: "stages", "aria-hidden": "true" }, parts),
    el("ul", { class: "legend", "aria-label": `Latency, ${milliseconds(total)} in all` }, words),
  );
}
