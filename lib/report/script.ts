// The page's script: the functions of page/, each closed in itself, put together as one. They are written as modules so
// that they are checked, and travel as their own source text, so that nothing has to be bundled.
import { createCharts } from "./page/charts.ts";
import { createConversation } from "./page/conversation.ts";
import { createDecode } from "./page/decode.ts";
import { createDom } from "./page/dom.ts";
import { createLanes } from "./page/lanes.ts";
import { createList } from "./page/list.ts";
import { createLive } from "./page/live.ts";
import { main, type PageParts } from "./page/main.ts";
import { createRibbons } from "./page/ribbon.ts";
import { createRows } from "./page/rows.ts";
import { createSyntax, createText } from "./page/text.ts";
import { createViewer } from "./page/viewer.ts";

const PARTS: PageParts = {
  createCharts,
  createConversation,
  createDecode,
  createDom,
  createLanes,
  createList,
  createLive,
  createRibbons,
  createRows,
  createSyntax,
  createText,
  createViewer,
};

const parts = Object.entries(PARTS).map(([name, part]) => `${name}: ${part}`);

// A name that a compiler's helper may have put into the functions' texts.
export const SCRIPT = `"use strict";
{
const __name = (value) => value;
(${main})({
${parts.join(",\n")}
});
}`;
