"""The style sheet of the report."""

from __future__ import annotations

STYLE_SHEET = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f5f6f8; --ink: #1d232b;
  --soft: #5b6572; --grid: #cfd5dc; --usual: #9aa5b1; --window: #2563a8; --alarm: #c2331f;
  --good: #1f7a4a; --wait: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --card: #1d232a; --ink: #e6eaee;
  --soft: #9eabb8; --grid: #3a444f; --usual: #75828f; --window: #6aa7ea; --alarm: #ff8a75;
  --good: #63c996; --wait: #e0b34a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .75rem; }
p { margin: .5rem 0; }
.verdict { font-size: 1.25rem; font-weight: 600; }
.verdict.bad { color: var(--alarm); }
.verdict.good { color: var(--good); }
.verdict.wait { color: var(--wait); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem;
  margin: 1rem 0; }
dl div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.note { border-left: .25rem solid var(--wait); padding: .4rem .8rem; background: var(--card); }
ul { padding-left: 1.2rem; }
li { margin: .4rem 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
th.number { text-align: right; }
.number + td:not(.number), .number + th:not(.number) { padding-left: .8rem; }
tr.bad td:first-child { color: var(--alarm); font-weight: 600; }
tr.wait td:last-child { color: var(--wait); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr));
  gap: 1rem; }
figure { margin: 0; background: var(--card); border-radius: .5rem; padding: .8rem; }
figcaption { font-weight: 600; margin-bottom: .4rem; overflow-wrap: anywhere; }
svg.plot { width: 100%; height: auto; display: block; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .4rem 0; }
@media print { details { display: block; } }
"""
