/**
 * The page with a real server of a project without maps, in Chromium: draws two polygons in a labelled area, and waits
 * for the quick map of what is in view.
 *
 * node tests/quick.mjs ADDRESS
 *
 * The address has its token. Prints what the page saw as JSON; tests/server/test_quick.py compares it with the files.
 */

import { chromium } from "playwright-core";

const browser = await chromium.launch({
  executablePath: process.env.GEOGRAFT_CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"],
});
const page = await browser.newPage({ viewport: { width: 900, height: 600 }, reducedMotion: "reduce" });
page.setDefaultTimeout(120_000);
const errors = [];
page.on("pageerror", (error) => errors.push(String(error.stack)));
page.on("console", (message) => { if (message.type() === "error") errors.push(message.text()); });
page.on("response", (response) => { if (response.status() >= 400) errors.push(`${response.status()} ${response.url()}`); });

const saved = async () => {
  await page.waitForTimeout(100);
  await page.locator("header .status", { hasText: /^Saved$/ }).waitFor();
};

try {
  await page.goto(process.argv[2]);
  await page.locator(".quick", { hasText: "label an area" }).waitFor();
  const box = await page.locator(".map").boundingBox();
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  await page.keyboard.press("r");
  for (const [dx, dy] of [[-60, -60], [20, 20]]) {
    await page.mouse.click(x + dx, y + dy);
    await page.mouse.click(x + dx + 40, y + dy + 40);
    await saved();
  }
  await page.keyboard.press("a");
  await page.mouse.click(x - 100, y - 100);
  await page.mouse.click(x + 100, y + 100);
  await saved();
  await page.getByRole("tab", { name: "Labels" }).click();
  await page.getByLabel("Everything inside is labelled").check();
  await saved();
  await page.getByRole("tab", { name: "Layers" }).click();
  const tile = page.waitForResponse((response) => response.url().includes("/values/") && response.status() === 200);
  await page.locator(".quick", { hasText: "an estimate" }).waitFor();
  const layer = page.getByRole("checkbox", { name: /Quick probability of/ });
  await layer.waitFor();
  const visible = await layer.isChecked();
  await tile;
  await page.locator(".map[aria-busy=false]").waitFor();
  const note = await page.locator(".quick").innerText();
  await page.screenshot({ path: process.env.GEOGRAFT_SCREENSHOT ?? "/dev/null", type: "png" });
  console.log(JSON.stringify({ note, visible, errors }));
} finally {
  await browser.close();
}
