// Why an item is, or is not, shown. Only where the server's OpenAPI document has `/v1/explain`, which
// also says which fields it takes.

import * as api from "./api.js";
import { bar, byId, count, el, percent } from "./dom.js";

const PATH = "/v1/explain";
const MOST_FEATURES = 8;

let takes;

/** Fill the panel's answer; `asked` is what was recommended for. */
export async function showWhy(item, { asked, shown, complain, isOpen }) {
  const box = byId("why");
  box.replaceChildren();
  box.hidden = true;
  try {
    takes ??= await fields();
    if (!takes) return;
    const known = { ...asked, k: shown, item: item.item_id, item_id: item.item_id };
    const body = Object.fromEntries(Object.entries(known).filter(([name]) => takes.has(name)));
    const { places, ...answer } = await api.explain(body);
    if (!isOpen(item)) return;
    const why = { ...answer, ...places };
    box.replaceChildren(
      el("h3", {}, "Why (not) this item"),
      el("p", {}, why.sentence),
      steps(why),
      ...features(why.contributions ?? []),
    );
    box.hidden = false;
  } catch (error) {
    complain(error);
  }
}

/** Names of the fields that the server takes; false where it explains nothing. */
async function fields() {
  const { paths, components } = await api.openApi();
  const schema = paths[PATH]?.post?.requestBody?.content?.["application/json"]?.schema;
  if (!schema) return false;
  const named = schema.$ref ? components.schemas[schema.$ref.split("/").at(-1)] : schema;
  return new Set(Object.keys(named.properties));
}

function steps(why) {
  const place = (rank, all) => (rank ? `#${count(rank)}${all ? ` of ${count(all)}` : ""}` : "\u2013");
  const { probe, probability, score } = why;
  const cell = probe ? `, cell ${probe.place <= probe.num_probes ? "" : "not "}looked into` : "";
  const rows = [
    ["Exact search", "retrieval", place(why.exact_rank), score?.toFixed(3)],
    ["Index", "retrieval", place(why.index_rank) + cell],
    ["Seen and filtered left out", "retrieval", place(why.allowed_rank, why.num_allowed)],
    ["Candidate", "retrieval", place(why.candidate_rank, why.num_candidates)],
    ["Ranker", "ranker", place(why.ranker_rank), Number.isFinite(probability) && percent(probability)],
    ["Shown", "ranker", place(why.place, why.k)],
  ];
  return el(
    "dl",
    { class: "facts" },
    rows.map(([name, kind, text, figure]) => [
      el("dt", {}, name),
      el("dd", { class: `number ${kind}` }, text, figure ? ` \u00b7 ${figure}` : ""),
    ]),
  );
}

/** What the weightiest features add to both scores. */
function features(contributions) {
  const some = contributions.slice(0, MOST_FEATURES);
  if (!some.length) return [];
  const most = (name) => Math.max(...some.map((one) => Math.abs(one[name] ?? 0)));
  const cell = (value, all, kind) =>
    el(
      "td",
      { class: `number ${kind}` },
      value === null ? "" : `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(3)}`,
      value === null ? null : bar(all ? Math.abs(value) / all : 0, `${kind}${value < 0 ? " less" : ""}`),
    );
  const rows = some.map((one) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, one.feature, el("span", { class: "quiet" }, ` ${one.value}`)),
      cell(one.score, most("score"), "retrieval"),
      cell(one.logit, most("logit"), "ranker"),
    ),
  );
  const heads = ["feature", "score", "logit"].map((name) => el("th", { scope: "col" }, name));
  return [
    el("h3", {}, "What each feature adds"),
    el("table", {}, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, rows)),
  ];
}
