// The style of the bar and of the view of episodes. Colours of tokens are variables, because the ribbons draw with them.

export const VIEWER_STYLE = `
:root {
  --prompt: #e9eaed; --observation: #dbe8fa; --action: #ffe9c2; --loss: #ffd591; --rest: #eceef0; --sure: #f3efe6;
  --amber1: #ffe3ab; --amber2: #ffc766; --amber3: #fb9a3c; --amber4: #ec6a2b;
  --violet1: #ebe2fb; --violet2: #d5c0f7; --violet3: #b48cf0; --violet4: #9160e6;
  --pos1: #ddf1e4; --pos2: #b5e3c7; --pos3: #82cfa2; --pos4: #4bb37a;
  --neg1: #fbe4df; --neg2: #f7c3b9; --neg3: #f09a89; --neg4: #e56b54;
  --cool1: #e0ecfc; --cool2: #bcd7f9; --cool3: #8dbaf4; --cool4: #5b98ea;
  --low: #7fb2f5; --high: #f99746; --dual: #c08af0;
  --sampling: #e9a13b; --tools: #4c8be6; --verifying: #8a95a3; --odd: #7a5a00; --odd-ground: #fdf1cf;
  --keyword: #8b2fa8; --string: #1c6f43; --number: #9a5b00; --comment: #7b8591; --call: #1f5fb8;
  --bar: 46px;
}
@media (prefers-color-scheme: dark) {
  :root {
    --prompt: #22272e; --observation: #1a2a42; --action: #3b2f17; --loss: #57421a; --rest: #20252b; --sure: #262722;
    --amber1: #4a3a17; --amber2: #6b4d17; --amber3: #93571a; --amber4: #b3481d;
    --violet1: #2c2541; --violet2: #41326a; --violet3: #5d4396; --violet4: #7a55c4;
    --pos1: #1a3025; --pos2: #1f4a34; --pos3: #266b48; --pos4: #2f8f5e;
    --neg1: #3a211d; --neg2: #5b2b24; --neg3: #83382c; --neg4: #ad4634;
    --cool1: #1a2a42; --cool2: #213d66; --cool3: #29528e; --cool4: #336bbb;
    --low: #2f62ab; --high: #a5601c; --dual: #6e45a3;
    --sampling: #b97a22; --tools: #3b73c4; --verifying: #5f6a77; --odd: #e8c869; --odd-ground: #372d10;
    --keyword: #d59af0; --string: #86d3a4; --number: #e5b567; --comment: #7d8894; --call: #83b7f7;
  }
}
[hidden] { display: none !important; }
#bar { position: sticky; top: 0; z-index: 5; height: var(--bar); display: flex; align-items: center; gap: 14px; padding: 0 20px;
  background: var(--card); border-bottom: 1px solid var(--edge); font-size: 14px; }
#bar .brand { font-weight: 650; letter-spacing: -.01em; }
#bar .run-name { color: var(--soft); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; min-width: 0; }
#tabs { margin-left: auto; display: flex; gap: 4px; flex: none; }
#tabs a { padding: 5px 12px; border-radius: 7px; color: var(--soft); text-decoration: none; white-space: nowrap; }
#tabs a span { font-size: 12px; font-variant-numeric: tabular-nums; opacity: .8; }
#tabs a:hover { color: var(--ink); }
#tabs a[aria-current=true] { background: var(--faint); color: var(--ink); font-weight: 600; }
.live { flex: none; padding: 1px 9px; border-radius: 10px; font-size: 12px; background: var(--faint); color: var(--soft); }
.live.on { color: var(--good); background: var(--good-ground); }
.live.off { color: var(--bad); background: var(--bad-ground); }
.viewing body { overflow: hidden; }
#viewer { position: fixed; inset: var(--bar) 0 0 0; display: grid; grid-template-columns: 318px minmax(0, 1fr); }
#viewer button, #viewer select, #viewer input { font: inherit; color: inherit; }
#viewer input, #viewer select { min-width: 0; padding: 5px 9px; border: 1px solid var(--edge); border-radius: 7px; background: var(--card); font-size: 13px; }
#viewer :focus-visible { outline: 2px solid var(--k0); outline-offset: -1px; }
.side { display: flex; flex-direction: column; min-height: 0; border-right: 1px solid var(--edge); background: var(--card); }
.filters { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; padding: 10px 12px 6px; border-bottom: 1px solid var(--faint); }
.filters input, .filters .total { grid-column: 1 / -1; }
.filters select:last-of-type { grid-column: 1 / -1; }
.total { margin: 0; color: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.list { flex: 1; overflow-y: auto; min-height: 0; }
.spacer { position: relative; }
.row { position: absolute; left: 0; right: 0; height: 54px; padding: 8px 12px 0 30px; cursor: pointer; border-bottom: 1px solid var(--faint);
  display: grid; grid-template-columns: minmax(0, 1fr) auto; column-gap: 8px; align-content: start; line-height: 1.4; }
.row:hover { background: var(--ground); }
.row[aria-selected=true] { background: var(--faint); box-shadow: inset 3px 0 0 var(--k0); }
.row b { font-weight: 600; font-size: 13px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.row small { grid-column: 1 / -1; color: var(--soft); font-size: 12px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; font-variant-numeric: tabular-nums; }
.row .dot { position: absolute; left: 13px; top: 14px; }
.row.away { opacity: .55; }
.dot { display: inline-block; width: 8px; height: 8px; border-radius: 50%; background: var(--soft); }
.dot.resolved { background: #2fa968; } .dot.failed { background: #dd5a42; } .dot.infra { background: transparent; border: 2px solid #d3a21c; }
.adv { font-size: 12px; font-variant-numeric: tabular-nums; color: var(--soft); line-height: 1.5; }
.adv.up { color: var(--good); } .adv.down { color: var(--bad); }
.main { display: grid; grid-template-rows: auto minmax(0, 1fr) auto; min-height: 0; min-width: 0; background: var(--ground); }
.main .empty { display: none; }
.main.nothing { grid-template-rows: auto minmax(0, 1fr); }
.main.nothing .empty { display: block; padding: 60px 24px; text-align: center; color: var(--soft); }
.main.nothing .conversation, .main.nothing .token-facts, .main.nothing .ribbons, .main.nothing .lane-row, .main.nothing .legend { display: none; }
.head { padding: 12px 20px 10px; background: var(--card); border-bottom: 1px solid var(--edge); min-width: 0; }
.headline-row { display: flex; align-items: center; gap: 10px; min-width: 0; }
.head h2 { margin: 0; font-size: 16px; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; flex: 1; }
.head h2 .badge { margin-right: 9px; vertical-align: 2px; }
.badge.odd { color: var(--odd); background: var(--odd-ground); }
.back { display: none; }
.back, .help, .key-help button { border: 1px solid var(--edge); background: var(--card); border-radius: 7px; padding: 3px 9px; cursor: pointer; font-size: 13px; }
.help { color: var(--soft) !important; }
.facts { margin: 2px 0 0; color: var(--soft); font-size: 12.5px; font-variant-numeric: tabular-nums; }
.head > .facts { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.group { display: flex; align-items: center; gap: 4px; margin: 8px 0 0; overflow-x: auto; scrollbar-width: none; }
.group .label { flex: none; font-size: 12px; color: var(--soft); margin-right: 4px; }
.group .hint { margin-left: 4px; opacity: .7; }
.group button { flex: none; display: inline-flex; align-items: center; gap: 5px; border: 1px solid var(--edge); background: var(--card); border-radius: 7px; padding: 1px 7px; font-size: 12px !important; cursor: pointer; font-variant-numeric: tabular-nums; }
.group button[aria-current=true] { border-color: var(--k0); background: var(--faint); font-weight: 600; }
.ribbons { margin: 8px 0 0; }
.ribbon { display: block; width: 100%; cursor: pointer; }
.ribbon.time { height: 9px; border-radius: 3px 3px 0 0; }
.ribbon.tokens { height: 20px; margin-top: 2px; border-radius: 0 0 3px 3px; }
.ribbon-said { display: flex; flex-wrap: wrap; gap: 0 14px; margin: 0 0 3px; font-size: 12px; color: var(--soft); font-variant-numeric: tabular-nums; }
.key.sampling i { background: var(--sampling); } .key.tools i { background: var(--tools); } .key.verifying i { background: var(--verifying); }
.lane-row { display: flex; flex-wrap: wrap; min-width: 0; align-items: center; gap: 8px 14px; margin-top: 9px; }
.lanes { display: inline-flex; flex-wrap: wrap; gap: 2px; padding: 2px; border-radius: 9px; background: var(--faint); }
.lanes button { border: 0; background: transparent; padding: 3px 11px; border-radius: 7px; font-size: 13px !important; cursor: pointer; color: var(--soft) !important; }
.lanes button:hover:not(:disabled) { color: var(--ink) !important; }
.lanes button[aria-checked=true] { background: var(--card); color: var(--ink) !important; font-weight: 600; box-shadow: 0 1px 2px rgb(0 0 0 / .12); }
.lanes button:disabled { cursor: help; opacity: .45; }
.find { display: flex; align-items: center; gap: 8px; margin-left: auto; }
.find input { width: 170px; }
.find-count { font-size: 12px; color: var(--soft); font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; align-items: baseline; gap: 3px 6px; margin: 7px 0 0; font-size: 12px; }
.legend .t { padding: 0 7px; border-radius: 4px; }
.legend .hint { color: var(--soft); }
.conversation { overflow-y: auto; padding: 4px 20px 40vh; min-height: 0; overflow-anchor: auto; }
.conversation .turn { max-width: 920px; margin: 14px 0 0; padding: 0; border: 0; background: none; border-radius: 0; }
.turn > header { display: flex; align-items: baseline; gap: 9px; padding: 0 0 5px; max-width: none; font-size: 13px; }
.turn > header .facts { margin: 0; }
.block { padding: 9px 13px; background: var(--card); border: 1px solid var(--edge); border-bottom-width: 0; }
.turn > .block:last-child, .turn > .tail + .block, .turn > .block:has(+ .aside) { border-bottom-width: 1px; }
.turn > header + .block { border-radius: 9px 9px 0 0; }
.turn > .block:last-child { border-radius: 0 0 9px 9px; }
.turn > header + .block:last-child { border-radius: 9px; }
.slab { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; direction: ltr; tab-size: 4; min-height: 20px; line-height: 20px; contain: content; }
.block.command, .block.observation, .block.patch, .block.recorded, .block.prompt-text { font: 12.5px/20px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.block.reasoning { font-size: 14px; }
.block.command { background: var(--code); border-left: 3px solid var(--sampling); }
.block.observation, .block.recorded { border-left: 3px solid var(--tools); }
.block.tail { padding-top: 1px; padding-bottom: 1px; border-top-style: dotted; font-size: 12px; color: var(--soft); }
.block.prompt-text { border-left: 3px solid var(--verifying); }
.aside { margin: 8px 0 4px; color: var(--soft); font-size: 12px; }
.t { border-radius: 3px; box-decoration-break: clone; -webkit-box-decoration-break: clone; padding: 1.5px 0; }
.conversation .t { cursor: pointer; }
.conversation .t:hover { box-shadow: 0 0 0 1px var(--soft); }
.conversation .t.on { box-shadow: 0 0 0 2px var(--k0); position: relative; }
.conversation .t.hit { text-decoration: underline 2px var(--bad); text-underline-offset: 3px; }
.t.nl::before { content: "↵"; opacity: .35; font: 10px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.t.special { opacity: .7; font-size: .86em; }
${[
  "prompt observation action loss sure amber1 amber2 amber3 amber4 violet1 violet2 violet3 violet4 pos1 pos2 pos3 pos4",
  "neg1 neg2 neg3 neg4 cool1 cool2 cool3 cool4 low high dual",
]
  .join(" ")
  .split(" ")
  .map((name) => `.t.${name} { background: var(--${name}); }`)
  .join("\n")}
.conversation .t.prompt, .conversation .t.observation, .conversation .t.sure { background: none; }
.conversation .prompt-text .t.prompt, .conversation .observation .t.observation { background: none; }
.conversation i { font-style: normal; }
i.s-keyword { color: var(--keyword); } i.s-string { color: var(--string); } i.s-number { color: var(--number); } i.s-comment { color: var(--comment); }
i.s-call { color: var(--call); } i.s-meta { color: var(--comment); } i.s-hunk { color: var(--call); } i.s-tool { font-weight: 700; }
i.s-added { color: var(--good); background: var(--good-ground); } i.s-removed { color: var(--bad); background: var(--bad-ground); }
i.s-fence { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; color: var(--soft); }
i.s-error { color: var(--bad); } i.s-good { color: var(--good); font-weight: 600; }
.token-facts { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 16px; min-height: 40px; padding: 9px 20px; background: var(--card); border-top: 1px solid var(--edge); font-size: 13px; font-variant-numeric: tabular-nums; }
.token-facts code { padding: 1px 6px; border-radius: 4px; background: var(--faint); max-width: 40ch; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.token-facts small { color: var(--soft); font-size: 11.5px; margin-right: 5px; }
.token-facts .hint { color: var(--soft); }
.key-help { border: 1px solid var(--edge); border-radius: 12px; background: var(--card); color: var(--ink); padding: 20px 24px; max-width: 460px; }
.key-help::backdrop { background: rgb(0 0 0 / .35); }
.key-help dl { display: grid; grid-template-columns: auto 1fr; gap: 6px 18px; margin: 0; font-size: 13.5px; }
.key-help dt { font-family: ui-monospace, Menlo, Consolas, monospace; white-space: pre; }
.key-help dd { margin: 0; color: var(--soft); }
.key-help form { margin-top: 14px; }
table.left td, table.left th { text-align: left; }
@media (max-width: 1080px) { #viewer { grid-template-columns: 270px minmax(0, 1fr); } }
@media (max-width: 780px) {
  #bar { padding: 0 12px; gap: 9px; }
  #bar .run-name { display: none; }
  #viewer { grid-template-columns: minmax(0, 1fr); }
  #viewer.reading .side, #viewer:not(.reading) .main { display: none; }
  .back { display: block; flex: none; }
  .head { padding: 9px 12px 8px; }
  .conversation { padding: 2px 12px 40vh; }
  .token-facts { padding: 8px 12px; gap: 2px 12px; font-size: 12.5px; }
  .find { margin-left: 0; }
  .lanes { flex-wrap: nowrap; overflow-x: auto; scrollbar-width: none; max-width: 100%; }
  .lanes button { flex: none; }
  .legend .hint, .group .hint, .help { display: none; }
  .row .dot { top: 14px; }
}
`;
