// What the server is asked. Paths are relative, so that it may stand below a prefix.

const KEY = "twotower-api-key";

/** A refusal with the server's reasons. */
export class Refused extends Error {
  constructor(status, problems) {
    super(problems.map(({ place, problem }) => `${place}: ${problem}`).join("; "));
    this.status = status;
  }
}

/** Keep the API key as long as this tab is open. */
export const useKey = (key) => sessionStorage.setItem(KEY, key);

// Ids are kept as they are spelled: a number above 2^53 would be rounded.
const exactIds = (name, value, context) =>
  name === "item_id" && typeof value === "number" ? (context?.source ?? String(value)) : value;

async function ask(path, body) {
  const key = sessionStorage.getItem(KEY);
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  if (body) headers["Content-Type"] = "application/json";
  const sent = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, sent);
  } catch {
    throw new Refused(0, [{ place: "server", problem: "does not answer" }]);
  }
  const text = await response.text();
  if (response.ok) return JSON.parse(text, exactIds);
  let problems;
  try {
    problems = JSON.parse(text).problems;
  } catch {
    problems = [{ place: "server", problem: `status ${response.status}` }];
  }
  throw new Refused(response.status, problems);
}

const query = (path, values) => `${path}?${new URLSearchParams(values)}`;

export const summary = () => ask("page/summary");
export const users = (prefix) => ask(query("page/users", { prefix }));
export const randomUser = () => ask("page/random-user");
export const items = (text) => ask(query("page/items", { text }));
export const history = (user) => ask(query("page/history", { user }));
export const filters = () => ask("page/filters");
export const map = () => ask("page/map");
export const places = (ids) => ask("page/places", { items: ids });
export const similar = (item, k) => ask("v1/similar", { item, k });
export const explain = (body) => ask("v1/explain", body);
export const openApi = () => ask("openapi.json");

/** Recommend; the answer also says how long it took from here and back, in seconds. */
export async function recommend(asked, k) {
  performance.clearResourceTimings();
  const started = performance.now();
  const answer = await ask("v1/recommend", { ...asked, k, explain: true });
  // What the browser's network part has measured does not hold this page's own work.
  const [timing] = performance.getEntriesByName(new URL("v1/recommend", location.href).href);
  const took = timing ? timing.responseEnd - timing.requestStart : performance.now() - started;
  return { ...answer, roundTrip: took / 1000 };
}
