// What is asked stands in the address: `#user=u1&item=i7&filters=...`, to be kept and passed on.

export function read() {
  const found = new URLSearchParams(location.hash.slice(1));
  let filters = [];
  try {
    filters = JSON.parse(found.get("filters") ?? "[]");
  } catch {
    // Somebody else's address; without filters it still shows something.
  }
  return {
    user: found.get("user") || null,
    history: found.getAll("item"),
    filters: Array.isArray(filters) ? filters : [],
  };
}

export const isEmpty = () => location.hash.length < 2;

/** Go to what is asked now; with `replace` the way back leads past it. */
export function go({ user, history, filters }, { replace = false } = {}) {
  const shown = new URLSearchParams({ user: user ?? "" });
  history.forEach((item) => shown.append("item", item));
  if (filters.length) shown.set("filters", JSON.stringify(filters));
  const address = `#${shown}`;
  if (address === location.hash) return;
  if (replace) location.replace(address);
  else location.hash = address;
}
