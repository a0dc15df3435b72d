"""How pages look: one style for screens wide and narrow, light and dark, and for paper."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --soft: #5a6472; --line: #d9dde3; --grid: #e6e9ee;
  --original: #8590a0; --robust: #2f6fde; --pruned: #0b8f6a; --before: #d4d8de;
  --clean: #2f6fde; --pgd: #d9622b; --other1: #a05fc4; --other2: #b98a00;
  --good: #0b7a5b; --bad: #c22f2f; --warn: #96640a;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1d2127; --ink: #e7eaee; --soft: #a2abb8; --line: #363c45; --grid: #2a3038;
    --original: #8d98a8; --robust: #6a9cf5; --pruned: #35bd92; --before: #3e444c;
    --clean: #6a9cf5; --pgd: #f08a55; --other1: #c592e6; --other2: #d9b13b;
    --good: #43c99d; --bad: #ff7b73; --warn: #e0ae4e;
  }
}
* { box-sizing: border-box; }
html { background: var(--paper); }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .5rem; } details + h3 { margin-top: 1.75rem; }
p { margin: .5rem 0; max-width: 52rem; }
a { color: inherit; text-underline-offset: .2em; }
code, pre { font: .84em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .9rem; overflow: auto;
  max-height: 34rem; white-space: pre-wrap; }
.about, .note, figcaption { color: var(--soft); font-size: .9rem; }
.headline { font-size: 1.12rem; margin: 1.1rem 0; max-width: 60rem; }
nav { font-size: .9rem; color: var(--soft); margin: 1rem 0 0; }
nav a { margin-right: 1rem; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.65rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: .84rem; color: var(--soft); }
.tile span.name { color: var(--ink); font-weight: 600; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); gap: 1rem; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .36rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); white-space: nowrap; } th.number { white-space: normal; }
tbody th { font-weight: 400; }
tr.group th { font-weight: 600; padding-top: 1rem; }
tr.main td, tr.main th { font-weight: 600; }
small { font-weight: 400; color: var(--soft); font-size: .8em; }
small.interval { display: block; }
td code, .whole { white-space: nowrap; }
td.wide { color: var(--soft); white-space: normal; min-width: 14em; }
.remark { display: block; white-space: normal; min-width: 14em; max-width: 16em; margin-left: auto; }
td code.file { white-space: normal; overflow-wrap: anywhere; display: inline-block; min-width: 11em; }
small.warn { color: var(--warn); }
.unknown { color: var(--soft); cursor: help; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.warn { color: var(--warn); font-weight: 600; }
ul.plain { padding-left: 1.15rem; max-width: 50rem; } ul.plain li { margin: .3rem 0; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem .9rem; margin: 0;
  font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
details { margin: .75rem 0; } summary { cursor: pointer; }
.cards { columns: 2 24rem; column-gap: 1rem; } .cards .card { break-inside: avoid; margin: 0 0 1rem; }
figure { margin: 0; break-inside: avoid; }
svg { display: block; width: 100%; height: auto; }
svg text { font-variant-numeric: tabular-nums; }
.pictures { display: grid; grid-template-columns: 3.2rem repeat(3, minmax(0, 20rem)); gap: .4rem;
  margin: .5rem 0 1.75rem; break-inside: avoid; font-size: .88rem; color: var(--soft); }
.pictures img { display: block; width: 100%; height: auto; border-radius: 4px; }
.pictures .row { align-self: center; } .pictures figcaption { grid-column: 1 / -1; overflow-wrap: anywhere; }
.pictures .absent { border: 1px dashed var(--line); border-radius: 4px; padding: 1rem; text-align: center; }
.columns svg { min-width: 40rem; }
@media (max-width: 40rem) {
  body { padding: 1.25rem .9rem 3rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tile { padding: .7rem .8rem; }
  table { font-size: .8rem; } th, td { padding: .32rem .28rem; }
  td.number, th.number, thead th { white-space: normal; } small { font-size: .88em; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .45rem; }
  .pictures { grid-template-columns: repeat(3, minmax(0, 1fr)); } .pictures .corner { display: none; }
  .pictures .row { grid-column: 1 / -1; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; } h2 { break-after: avoid; } .tile, .card, tr { break-inside: avoid; }
  .scroll { overflow: visible; } pre { max-height: none; } * { print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
}
"""
