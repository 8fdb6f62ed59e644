/** The history of rounds as a small chart: IoU with its confidence interval against the round. */

import { h, svg } from "./dom.ts";
import { formatArea, formatScore } from "./format.ts";
import type { Round } from "./types.ts";

const WIDTH = 288;
const HEIGHT = 132;
const PAD = { left: 30, right: 10, top: 10, bottom: 24 };

export interface Point {
  round: Round;
  x: number;
  y: number;
  yLow: number;
  yHigh: number;
}

/** Return the scored rounds' positions in the chart. */
export function chartPoints(rounds: readonly Round[]): Point[] {
  const scored = rounds.filter((round) => round.iou !== null);
  const inner = WIDTH - PAD.left - PAD.right;
  return scored.map((round, i) => {
    const iou = round.iou ?? 0;
    const x = PAD.left + (scored.length === 1 ? inner / 2 : (inner * i) / (scored.length - 1));
    return { round, x, y: yOf(iou), yLow: yOf(round.iou_low ?? iou), yHigh: yOf(round.iou_high ?? iou) };
  });
}

function yOf(iou: number): number {
  return PAD.top + (1 - iou) * (HEIGHT - PAD.top - PAD.bottom);
}

export function historyChart(rounds: readonly Round[]): SVGElement {
  const points = chartPoints(rounds);
  const grid = [0, 0.5, 1].flatMap((iou) => [
    svg("line", { class: "grid", x1: PAD.left, x2: WIDTH - PAD.right, y1: yOf(iou), y2: yOf(iou) }),
    svg("text", { x: PAD.left - 6, y: yOf(iou) + 4, "text-anchor": "end" }, String(iou)),
  ]);
  const line = svg("polyline", { class: "line", points: points.map(({ x, y }) => `${x},${y}`).join(" ") });
  const every = Math.ceil(points.length / 8);
  const marks = points.flatMap(({ round, x, y, yLow, yHigh }, i) => [
    svg("line", { class: "whisker", x1: x, x2: x, y1: yLow, y2: yHigh }),
    svg("circle", { class: "dot", cx: x, cy: y, r: 3.5 }, svg("title", {}, describe(round))),
    i % every === 0 && svg("text", { x, y: HEIGHT - 7, "text-anchor": "middle" }, String(round.round)),
  ]);
  const last = points.at(-1);
  const label = last ? `IoU by round. Last: ${describe(last.round)}` : "IoU by round";
  return svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, ...grid, line, ...marks);
}

function describe(round: Round): string {
  const score = round.iou === null ? "not scored" : `IoU ${formatScore(round.iou, round.iou_low, round.iou_high)}`;
  return `round ${round.round}: ${score}`;
}

/** Return the same history as a table. */
export function historyTable(rounds: readonly Round[]): HTMLElement {
  const head = h("tr", {}, ...["Round", "Tiles", "IoU (95 % CI)", "Area"].map((text) => h("th", { scope: "col" }, text)));
  const rows = [...rounds].reverse().map((round) => {
    const iou = round.iou === null ? "–" : formatScore(round.iou, round.iou_low, round.iou_high).replace("95 % CI ", "");
    const area = round.area_m2 === null ? "–" : formatArea(round.area_m2);
    return h("tr", {}, ...[String(round.round), String(round.tiles ?? "–"), iou, area].map((text) => h("td", {}, text)));
  });
  return h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows));
}
