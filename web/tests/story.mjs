/**
 * The page with a real server of a project without maps, in Chromium, from the first polygon to a second training whose
 * server is killed.
 *
 * node tests/story.mjs ADDRESS DRAWN
 *
 * The address has its token. DRAWN is JSON: an area, and polygons in it of which the last is drawn before the second
 * training; each a list of [longitude, latitude]. At each event the script writes a line of JSON, and reads the answer
 * from standard input; tests/server/test_story.py compares them with the files.
 */

import assert from "node:assert/strict";
import { createInterface } from "node:readline";

import { drag, newSession, picture, saved, settled } from "./session.mjs";

const [, , address, drawn] = process.argv;
const { area, polygons } = JSON.parse(drawn);
const SIZES = [[1280, 800], [820, 1000], [390, 760]];
const COVERS = ".toolbar, .floating, .position, .notices, .maplibregl-control-container";
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function tell(event, values = {}) {
  console.log(JSON.stringify({ event, ...values }));
  return JSON.parse((await answers.next()).value);
}

process.on("unhandledRejection", () => {}); // what was waited for in vain is thrown where it is awaited
const { browser, page, errors } = await newSession({ timeout: 120_000 });
const tiles = [];
page.on("request", (request) => { if (request.url().includes("/api/layers/") && request.url().includes(".png")) tiles.push(request.url()); });
const tab = (name) => page.getByRole("tab", { name }).click();
const box = (name) => page.getByRole("checkbox", { name });
const quickLayers = () => box(/Quick/).count();

/** Return what the map shows: its place on the page, and the bounds that the page tells the server. */
async function openMap() {
  const looked = page.waitForRequest((request) => request.method() === "PUT" && request.url().endsWith("/api/view"));
  await page.goto(address);
  await page.locator(".quick", { hasText: "label an area" }).waitFor();
  const { bounds } = (await looked).postDataJSON();
  return { bounds, ...(await page.locator(".map").boundingBox()) };
}

async function draw(map, key, ring) {
  const [west, south, east, north] = map.bounds;
  await page.keyboard.press(key);
  for (const [lng, lat] of ring) {
    await page.mouse.click(map.x + (map.width * (lng - west)) / (east - west), map.y + (map.height * (north - lat)) / (north - south));
  }
  if (key === "p") await page.keyboard.press("Enter");
  await saved(page);
}

async function drawFirst(map) {
  for (const ring of polygons.slice(0, -1)) await draw(map, "p", ring);
  await draw(map, "a", area);
  await tab("Labels");
  const tile = page.waitForResponse((response) => response.url().includes("/values/") && response.status() === 200);
  await page.getByLabel("Everything inside is labelled").check();
  await saved(page);
  await tab("Layers");
  await page.locator(".quick", { hasText: "an estimate" }).waitFor();
  await box(/Quick probability of/).waitFor();
  assert.ok(await box(/Quick probability of/).isChecked());
  await tile;
  await settled(page);
  await picture(page, "quick");
}

async function train() {
  await tab("Train");
  await page.getByRole("button", { name: "Train and map" }).click();
  await page.getByRole("button", { name: "Cancel" }).waitFor();
}

/** Wait until the maps of a network are shown, in place of the quick one. */
async function seeMaps(name) {
  await page.getByText("Last time: done").waitFor();
  // No random area is labelled.
  await page.getByText("After a training with labelled random areas").waitFor();
  assert.equal(await page.getByText(/IoU/).count(), 0);
  await picture(page, name);
  await tab("Layers");
  await box(/^Probability of/).waitFor();
  assert.ok(await box(/^Probability of/).isChecked());
  assert.equal(await quickLayers(), 0);
  await settled(page);
}

/** Tell what the map looks like at the thresholds that the answer names, without anything over or under it. */
async function moveThreshold(map, thresholds) {
  await page.keyboard.press("Escape"); // the area is still selected
  for (const name of [/^Image/, "Labels", "Areas", "Suggestions"]) await box(name).uncheck();
  await drag(page.getByLabel(/Opacity of Probability/), [1]);
  await settled(page);
  await page.evaluate((covers) => { for (const each of document.querySelectorAll(covers)) each.style.visibility = "hidden"; }, COVERS);
  const before = tiles.length;
  const slider = page.getByRole("slider", { name: /^Threshold/ });
  const seen = [];
  for (const threshold of thresholds) {
    const measured = page.waitForResponse((response) => response.url().includes(`/area?threshold=${threshold}`));
    await drag(slider, [0.5, threshold]);
    const { pixels } = await (await measured).json();
    await settled(page);
    const png = (await page.screenshot({ clip: { x: map.x, y: map.y, width: map.width, height: map.height } })).toString("base64");
    await picture(page, `threshold-${threshold}`);
    seen.push({ threshold, pixels, png });
  }
  await tell("moved", { seen, tiles: tiles.slice(before), bounds: map.bounds });
}

async function reload() {
  await page.reload();
  await box(/^Probability of/).waitFor();
  await settled(page);
  for (const [width, height] of SIZES) {
    await page.setViewportSize({ width, height });
    for (const name of ["Layers", "Labels", "Train", "Files"]) {
      await tab(name);
      const wide = await page.evaluate(() => [document.documentElement, document.querySelector(".side")].some((each) => each.scrollWidth > each.clientWidth));
      assert.ok(!wide, `${name} is too wide for ${width} pixels`);
      await settled(page);
      await picture(page, `${width}-${name}`);
    }
  }
  await page.setViewportSize({ width: 900, height: 600 });
  await page.reload();
  await tab("Labels");
  await page.getByRole("button", { name: /^tree/, pressed: true }).filter({ hasText: String(polygons.length - 1) }).waitFor();
  await settled(page);
}

try {
  const map = await openMap();
  await drawFirst(map);
  await tell("quick");
  await train();
  await seeMaps("trained");
  await moveThreshold(map, await tell("trained"));
  await reload();

  await draw(map, "p", polygons.at(-1));
  await train();
  await page.getByText(/\d of \d/).waitFor();
  await tell("training");
  await page.getByText("No connection to the server").waitFor();
  const next = await tell("disconnected");
  await page.goto(next);
  await tab("Train");
  await seeMaps("trained-again");
  await tab("Labels");
  await page.getByRole("button", { name: /^tree/, pressed: true }).filter({ hasText: String(polygons.length) }).waitFor();
  await picture(page, "resumed");
  // The server that was killed could not be reached.
  await tell("done", { errors: errors.filter((each) => !each.includes("net::ERR_")) });
} catch (error) {
  await picture(page, "failed");
  throw error;
} finally {
  await browser.close();
}
process.exit(0);
