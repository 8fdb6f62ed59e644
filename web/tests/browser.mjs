/**
 * The built page in Chromium, with the stand-in server: what a person sees and does.
 *
 * node tests/browser.mjs
 *
 * GEOGRAFT_CHROMIUM names another Chromium than /usr/bin/chromium.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

import { drag, launch } from "./session.mjs";
import { changeJob, sample, startStandin } from "./standin.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const [GREEN, BLUE, ORANGE] = [[0, 158, 115], [0, 114, 178], [213, 94, 0]];
const TOLERANCE = 3; // of a colour that went through the GPU

const browser = await launch();
const blank = await browser.newPage();
const problems = [];

async function open(server, { width = 900, height = 560, token = true } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: "light", reducedMotion: "reduce", acceptDownloads: true });
  const page = await context.newPage();
  page.on("pageerror", (error) => problems.push(String(error.stack)));
  page.setDefaultTimeout(10_000);
  // Chromium logs refusals that a test asks for by itself.
  page.on("console", (message) => { if (message.type() === "error" && !/status of (401|409|503)/.test(message.text())) problems.push(message.text()); });
  await page.goto(token ? server.url : server.origin);
  return page;
}

/** Wait until a condition holds, at most ten seconds. */
async function until(condition, what) {
  for (let i = 0; i < 200; i++) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.fail(`timed out: ${what}`);
}

/** Wait until the page has read everything, and the map has drawn it. */
async function idle(server, page) {
  await until(() => server.state.requests.includes("GET /api/jobs"), "the last of the first requests");
  await page.waitForTimeout(150);
  await page.locator(".map[aria-busy=false]").waitFor();
}

/** Return a function that gives the colour at a point of the page. */
async function look(page) {
  const url = `data:image/png;base64,${(await page.screenshot()).toString("base64")}`;
  const { width, data } = await blank.evaluate(async (source) => {
    const picture = new Image();
    picture.src = source;
    await picture.decode();
    const canvas = new OffscreenCanvas(picture.width, picture.height);
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const bytes = context.getImageData(0, 0, picture.width, picture.height).data;
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return { width: picture.width, data: btoa(text) };
  }, url);
  const bytes = Buffer.from(data, "base64");
  return (x, y) => [...bytes.subarray(4 * (Math.round(y) * width + Math.round(x)), 4 * (Math.round(y) * width + Math.round(x)) + 3)];
}

const isColor = (color, expected) => color.every((value, i) => Math.abs(value - expected[i]) <= TOLERANCE);

async function checkAccessibility(page, what) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"] }));
  assert.deepEqual(violations.map(({ id, nodes }) => `${what}: ${id}: ${nodes[0].html}`), []);
}

const stage = (page) => page.locator(".stage").boundingBox();
const tab = (page, name) => page.getByRole("tab", { name }).click();

/** Positions of the map's points on the page: from what the page says about the pointer. */
async function positionAt(page, x, y) {
  await page.mouse.move(x, y);
  const text = await page.locator(".position").textContent();
  const [, lat, lng] = /([\d.]+)° N, ([\d.]+)° E/.exec(text);
  return [Number(lng), Number(lat)];
}

const tests = {
  async "the token leaves the address bar, survives a reload, and is asked for without it"() {
    const server = await startStandin();
    const page = await open(server);
    await page.getByRole("heading", { name: "Forest of the north" }).waitFor();
    assert.equal(page.url(), `${server.origin}/`);
    await page.reload();
    await page.getByRole("heading", { name: "Forest of the north" }).waitFor();
    await page.context().close();
    const other = await open(server, { token: false });
    await other.getByRole("heading", { name: "This address lacks its token" }).waitFor();
    await checkAccessibility(other, "no token");
    return { page: other, server };
  },

  async "the threshold moves without a request for tiles, exactly; no value stays clear; bands and stretch change the image"() {
    const server = await startStandin("run");
    const page = await open(server);
    await page.getByRole("checkbox", { name: /ortho/ }).uncheck();
    await drag(page.getByLabel("Opacity of Probability of forest"), [1]);
    await idle(server, page);
    const { width, height } = await stage(page);
    const points = [];
    for (let i = 1; i < 8; i++) for (let j = 1; j < 8; j++) points.push([Math.round((width * i) / 8), 50 + Math.round((height * j) / 8)]);
    const places = [];
    for (const [x, y] of points) places.push({ x, y, found: sample(...(await positionAt(page, x, y))) });
    const slider = page.getByRole("slider", { name: /Threshold/ });
    let tested = 0;
    for (const threshold of [0.2, 0.44, 0.8]) {
      const before = server.state.requests.length;
      await drag(slider, [0.1, 0.3, 0.6, threshold]);
      await page.waitForTimeout(300);
      const requests = server.state.requests.slice(before);
      assert.deepEqual(requests, [`GET /api/layers/probability/area?threshold=${threshold}`]);
      const at = await look(page);
      const ground = at(2, height);
      for (const { x, y, found } of places) {
        if (found && Math.abs(found.p - threshold) < 0.08) continue;
        tested += 1;
        assert.ok(isColor(at(x, y), found && found.p > threshold ? GREEN : ground), `${threshold} at ${x}, ${y}: ${at(x, y)} for ${found?.p}`);
      }
      for (let x = 100; x < width - 60; x += 3) for (let y = 130; y < height - 30; y += 3) {
        const color = at(x, y);
        assert.ok(isColor(color, GREEN) || isColor(color, ground), `a mixed colour at ${x}, ${y}: ${color}`);
      }
    }
    assert.ok(tested > 90, `${tested} points`);
    const before = server.state.requests.length;
    await page.getByRole("checkbox", { name: /ortho/ }).check();
    await page.getByText("Bands and stretch").click();
    await page.getByRole("combobox", { name: "Red" }).selectOption("4");
    await page.getByRole("combobox", { name: "Stretch" }).selectOption("0-100");
    await until(() => server.state.requests.slice(before).some((each) => each.includes("bands=4,2,3&low=0&high=100")), "bands and stretch");
    assert.ok(server.state.requests.slice(before).every((each) => each.includes("/layers/image/tiles/")));
    return { page, server };
  },

  async "errors are right, missed or wrong at any threshold, without a request for tiles"() {
    const server = await startStandin("run");
    const page = await open(server);
    await page.getByRole("checkbox", { name: /ortho/ }).uncheck();
    await page.getByRole("checkbox", { name: "Probability of forest" }).uncheck();
    await page.getByRole("checkbox", { name: "Errors of forest" }).check();
    await page.getByText("mapped as forest, but is not").waitFor();
    await checkAccessibility(page, "errors");
    await drag(page.getByLabel("Opacity of Errors of forest"), [1]);
    await idle(server, page);
    const { width, height } = await stage(page);
    const places = [];
    for (let i = 1; i < 14; i++) for (let j = 1; j < 14; j++) {
      const [x, y] = [Math.round((width * i) / 14), 50 + Math.round((height * j) / 14)];
      places.push({ x, y, found: sample(...(await positionAt(page, x, y))) });
    }
    const slider = page.getByRole("slider", { name: /Threshold/ });
    const seen = new Set();
    for (const threshold of [0.15, 0.85]) {
      const before = server.state.requests.length;
      await drag(slider, [0.5, threshold]);
      await page.waitForTimeout(300);
      assert.deepEqual(server.state.requests.slice(before), [`GET /api/layers/probability/area?threshold=${threshold}`]);
      const at = await look(page);
      const ground = at(2, height);
      for (const { x, y, found } of places) {
        // Not beside an edge, where the page's pixel may show the neighbour.
        if (!found || Math.abs(found.p - threshold) < 0.08 || Math.abs(found.p - 0.5) < 0.13) continue;
        const what = found.p > threshold ? (found.truth ? GREEN : ORANGE) : found.truth ? BLUE : ground;
        seen.add(String(what));
        assert.ok(isColor(at(x, y), what), `${threshold} at ${x}, ${y}: ${at(x, y)}, not ${what}`);
      }
    }
    assert.equal(seen.size, 4);
    return { page, server };
  },

  async "labels are drawn, undone, changed by key, cut and deleted"() {
    const server = await startStandin();
    const page = await open(server);
    await idle(server, page);
    const { labels } = server.state;
    const { width } = await stage(page);
    const [x, y] = [width - 190, 390];
    await page.keyboard.press("p");
    await page.keyboard.press("3");
    for (const [dx, dy] of [[0, 0], [70, 0], [70, 60]]) await page.mouse.click(x + dx, y + dy);
    await page.keyboard.press("Enter");
    await until(() => labels.length === 3, "a polygon");
    assert.equal(labels[2].properties.class, "water");
    assert.equal(labels[2].properties.origin, "drawn");
    assert.equal(labels[2].geometry.coordinates[0].length, 4);
    await page.keyboard.press("Control+z");
    await until(() => labels.length === 2, "undone");
    await page.keyboard.press("Control+Shift+z");
    await until(() => labels.length === 3, "redone");
    await page.keyboard.press("r");
    await page.mouse.click(x - 110, y);
    await page.mouse.click(x - 30, y + 80);
    await until(() => labels.length === 4, "a rectangle");
    assert.equal(labels[3].geometry.coordinates[0].length, 5);
    await page.keyboard.press("v");
    await page.mouse.click(x + 55, y + 20);
    await page.keyboard.press("2");
    await until(() => labels[2].properties.class === "forest", "another class");
    await page.keyboard.press("Escape");
    await page.keyboard.press("s");
    for (const [dx, dy] of [[-85, 25], [-55, 25], [-55, 55]]) await page.mouse.click(x + dx, y + dy);
    await page.keyboard.press("Enter");
    await until(() => labels[3].geometry.coordinates.length === 2, "a hole");
    await page.keyboard.press("v");
    await page.mouse.click(x + 55, y + 20);
    await page.keyboard.press("Delete");
    await until(() => labels.length === 3, "deleted");
    await until(() => page.locator(".status").textContent().then((text) => text === "Saved"), "saved");
    return { page, server };
  },

  async "a vertex is dragged, and an area is drawn and said to be labelled"() {
    const server = await startStandin();
    const page = await open(server);
    await idle(server, page);
    await tab(page, "Labels");
    const { width } = await stage(page);
    const [x, y] = [width - 190, 390];
    await page.keyboard.press("r");
    await page.mouse.click(x, y);
    await page.mouse.click(x + 60, y + 60);
    await until(() => server.state.labels.length === 3, "a rectangle");
    const before = JSON.stringify(server.state.labels[2].geometry);
    await idle(server, page);
    await page.keyboard.press("v");
    await page.mouse.click(x + 30, y + 30);
    await page.getByText("Drag a vertex").waitFor();
    await page.mouse.move(x + 60, y + 60);
    await page.mouse.down();
    await page.mouse.move(x + 75, y + 70, { steps: 4 });
    await page.mouse.up();
    await until(() => JSON.stringify(server.state.labels[2].geometry) !== before, "a moved vertex");
    await page.keyboard.press("Escape");
    await page.keyboard.press("p");
    for (const [dx, dy] of [[-4, -3], [-4, 30], [-50, 30]]) await page.mouse.click(x + dx, y + dy); // near a corner, near an edge, free
    await page.keyboard.press("Enter");
    await until(() => server.state.labels.length === 4, "a neighbour");
    const [[square], [drawn]] = server.state.labels.slice(2).map((each) => each.geometry.coordinates);
    const [corner] = square.toSorted((a, b) => a[0] - b[0] || b[1] - a[1]);
    const onEdge = ([lng, lat]) => Math.abs(lng - corner[0]) < 1e-8 && lat < corner[1];
    assert.ok(drawn.some((each) => each[0] === corner[0] && each[1] === corner[1]), "shares the corner");
    assert.equal(drawn.filter(onEdge).length, 1);
    await page.keyboard.press("a");
    await page.mouse.click(x - 20, y - 20);
    await page.mouse.click(x + 90, y + 90);
    await until(() => server.state.areas.length === 3, "an area");
    await page.getByLabel("Everything inside is labelled").check();
    await until(() => server.state.areas[2].properties.labelled === true, "labelled");
    assert.deepEqual([server.state.areas[2].properties.role, server.state.areas[2].properties.origin], ["training", "drawn"]);
    return { page, server };
  },

  async "a random area is labelled, not deleted; a suggestion becomes an area"() {
    const server = await startStandin();
    const page = await open(server);
    await idle(server, page);
    await tab(page, "Labels");
    await page.keyboard.press("n");
    await page.getByText("Area 1, scoring").waitFor();
    await page.getByRole("button", { name: "All inside is labelled" }).click();
    await until(() => server.state.areas[1].properties.labelled === true, "labelled");
    await page.getByText("Suggestion 1, training").waitFor();
    await page.getByText("the model is least sure here").waitFor();
    await page.getByRole("button", { name: "Label this area" }).click();
    await until(() => server.state.areas.length === 3, "an area");
    assert.equal(server.state.areas[2].properties.origin, "suggested");
    return { page, server };
  },

  async "a change made in another program is merged, one of the same shape is told"() {
    const server = await startStandin();
    const page = await open(server);
    await idle(server, page);
    await tab(page, "Labels");
    const { labels } = server.state;
    await page.keyboard.press("v");
    const select = async () => {
      const { width, height } = await stage(page);
      await page.mouse.click(width * 0.3, 48 + height * 0.5);
      await page.getByRole("heading", { name: /^Label: / }).waitFor();
    };
    await select();
    labels[1].properties = { ...labels[1].properties, note: "from QGIS" };
    server.state.revision += 1;
    await page.keyboard.press("3");
    await page.getByText("both changes are kept").waitFor();
    await until(() => labels[0].properties.class === "water" && labels[1].properties.note === "from QGIS", "both");
    labels[0].properties = { ...labels[0].properties, class: "other" };
    server.state.revision += 1;
    await page.keyboard.press("2");
    await page.getByText("Another program changed this label").waitFor();
    assert.equal(labels[0].properties.class, "other");
    await page.getByRole("button", { name: "Use mine" }).click();
    await until(() => labels[0].properties.class === "forest", "ours");
    return { page, server };
  },

  async "what is drawn while the server is away is saved when it is back"() {
    const server = await startStandin();
    const page = await open(server);
    await idle(server, page);
    server.state.down = true;
    await page.keyboard.press("r");
    await page.mouse.click(450, 430);
    await page.mouse.click(490, 470);
    await page.getByText("Not saved yet; trying again").waitFor();
    server.state.down = false;
    await until(() => server.state.labels.length === 3, "saved");
    return { page, server };
  },

  async "training shows its progress from the stream, is cancelled, and brings new maps"() {
    const server = await startStandin();
    const page = await open(server);
    await tab(page, "Train");
    await page.getByRole("button", { name: "Train and map" }).click();
    await page.getByText("3 of 12 · 3 min left").waitFor();
    await checkAccessibility(page, "training");
    changeJob(server.state, "job1", { step: "Predicting", done: 6, seconds_left: 30 });
    await page.getByText("6 of 12 · 30 s left").waitFor();
    await page.getByRole("button", { name: "Cancel" }).click();
    await page.getByText("Last time: cancelled").waitFor();
    await page.getByRole("button", { name: "Train and map" }).click();
    await page.getByText("3 of 12").waitFor();
    server.state.project.revision = 2;
    for (const layer of server.state.project.layers) layer.revision = 2;
    changeJob(server.state, "job2", { state: "done" });
    await page.getByText("Last time: done").waitFor();
    await until(() => server.state.requests.some((each) => /values.*v=2$/.test(each)), "new tiles");
    changeJob(server.state, "job2", { state: "failed", message: "No labelled area." });
    await page.getByRole("alert").getByText("No labelled area.").waitFor();
    return { page, server };
  },

  async "what is built again keeps the focus, opened details and the comparison"() {
    const server = await startStandin();
    const page = await open(server);
    await idle(server, page);
    await page.getByText("Bands and stretch").click();
    await page.getByLabel("Left of the line").selectOption("probability");
    await page.getByLabel("Opacity of ortho.tif").focus();
    const focused = () => page.evaluate(() => document.activeElement?.getAttribute("aria-label") ?? document.activeElement?.textContent);
    server.state.project.revision = 2;
    for (const layer of server.state.project.layers) layer.revision = 2;
    server.emit("project", { revision: 2 });
    await until(() => server.state.requests.filter((each) => /values.*v=2$/.test(each)).length > 1, "new tiles");
    assert.equal(await page.locator("details[open]").count(), 1);
    assert.equal(await focused(), "Opacity of ortho.tif");
    assert.equal(await page.getByLabel("Left of the line").inputValue(), "probability");
    server.state.project.layers = server.state.project.layers.filter(({ id }) => id !== "probability");
    server.state.project.revision = 3;
    server.emit("project", { revision: 3 });
    await page.getByRole("slider", { name: "Swipe" }).waitFor({ state: "detached" });
    assert.equal(await page.getByLabel("Left of the line").inputValue(), "");
    await tab(page, "Train");
    await page.getByText("As a table").click();
    await page.getByRole("button", { name: "Train and map" }).click();
    await page.getByRole("button", { name: "Cancel" }).focus();
    changeJob(server.state, "job1", { done: 6 });
    await page.getByText("6 of 12").waitFor();
    assert.equal(await focused(), "Cancel");
    assert.equal(await page.locator("details[open]:visible").count(), 1);
    return { page, server };
  },

  async "a server that was started again is told from one that does not answer, and its address is read"() {
    const server = await startStandin();
    const page = await open(server);
    await idle(server, page);
    server.state.token = "another";
    for (const stream of server.state.streams) stream.end();
    await page.getByText("The server was started again").waitFor();
    await page.evaluate(() => { location.hash = "another"; });
    await page.getByText("Saved").waitFor();
    assert.equal(new URL(page.url()).hash, "");
    return { page, server };
  },

  async "the model is exported by a job, and then one of the files; a failure says why"() {
    const server = await startStandin();
    const page = await open(server);
    await tab(page, "Files");
    await page.getByRole("button", { name: /Prepare: .*ONNX/ }).click();
    await page.getByRole("heading", { name: "Exporting the model to ONNX" }).waitFor();
    await checkAccessibility(page, "exporting");
    server.state.files.find(({ kind }) => kind === "onnx").bytes = 24_000_000;
    changeJob(server.state, "job1", { state: "done" });
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: /trees-1a2b3c4d.onnx/ }).click()]);
    assert.equal(download.suggestedFilename(), "trees-1a2b3c4d.onnx");
    await page.getByRole("button", { name: "Prepare: Model for Geograft" }).click();
    await page.getByRole("button", { name: "Cancel" }).waitFor();
    changeJob(server.state, "job2", { state: "failed", message: "The disk is full." });
    await page.getByRole("alert").getByText("The disk is full.").waitFor();
    await checkAccessibility(page, "a failed export");
    return { page, server };
  },

  async "a click shows the values there; swiping compares; files are saved"() {
    const server = await startStandin();
    const page = await open(server);
    await idle(server, page);
    await page.mouse.click(300, 400);
    await page.locator(".values").getByText("Probability of forest").waitFor();
    await checkAccessibility(page, "values");
    const { width, height } = await stage(page);
    await page.mouse.click(width * 0.3, 48 + height * 0.5);
    await page.getByText(/^Label: forest, about 3\.\d\d? ha, drawn$/).waitFor();
    await page.getByLabel("Left of the line").selectOption("image");
    const handle = page.getByRole("slider", { name: "Swipe" });
    await handle.press("ArrowLeft");
    assert.equal(await handle.getAttribute("aria-valuenow"), "45");
    await page.getByLabel("Left of the line").selectOption("");
    assert.equal(await handle.count(), 0);
    await tab(page, "Files");
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: /Map \(GeoTIFF\)/ }).click()]);
    assert.equal(download.suggestedFilename(), "map.tif");
    return { page, server };
  },

  async "rasters without CRS are shown with rows and columns, an empty project with what to do"() {
    const server = await startStandin("plain");
    const page = await open(server);
    await idle(server, page);
    await page.mouse.move(300, 300);
    assert.match(await page.locator(".position").textContent(), /^row \d+, column \d+$/);
    assert.equal(await page.locator(".maplibregl-ctrl-scale").count(), 0);
    await page.context().close();
    server.close();
    const empty = await startStandin("empty");
    const other = await open(empty);
    await other.getByText("There is no raster to show yet.").waitFor();
    await checkAccessibility(other, "empty");
    return { page: other, server: empty };
  },

  async "every tab passes axe in light and dark, on a phone, too"() {
    const server = await startStandin();
    server.state.project.basemap = { url: "https://tiles.example/{z}/{x}/{y}.png", origin: "https://tiles.example", attribution: "" };
    const page = await open(server);
    for (const name of ["Layers", "Labels", "Train", "Files"]) {
      await tab(page, name);
      for (const colorScheme of ["light", "dark"]) {
        await page.emulateMedia({ colorScheme });
        await checkAccessibility(page, `${name}, ${colorScheme}`);
      }
    }
    await tab(page, "Layers");
    await page.getByRole("button", { name: "Show a basemap" }).click();
    await page.getByRole("button", { name: "Load from tiles.example" }).waitFor();
    await checkAccessibility(page, "asking for the basemap");
    await page.setViewportSize({ width: 390, height: 700 });
    await tab(page, "Labels");
    await checkAccessibility(page, "on a phone");
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `${overflow} pixels too wide for a phone`);
    await page.keyboard.press("?");
    await page.getByRole("dialog").waitFor();
    await checkAccessibility(page, "keys");
    return { page, server };
  },
};

let failed = 0;
const chosen = Object.entries(tests).filter(([name]) => name.includes(process.argv[2] ?? ""));
for (const [name, test] of chosen) {
  try {
    const { page, server } = await test();
    await page.context().close();
    server.close();
    assert.deepEqual(problems.splice(0), [], "errors in the console");
    console.log(`ok    ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${name}\n${error.stack}\n${problems.splice(0).join("\n")}`);
  }
}
await browser.close();
process.exit(failed === 0 && chosen.length > 0 ? 0 : 1);
