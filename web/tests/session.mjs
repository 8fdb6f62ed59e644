/** A page with a real server in Chromium, for the scripts that tests/server runs: open, wait, drag, take pictures. */

import { chromium } from "playwright-core";

const ARGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--force-color-profile=srgb"];
const { GEOGRAFT_CHROMIUM, GEOGRAFT_SCREENSHOTS } = process.env;

export function launch() {
  return chromium.launch({ executablePath: GEOGRAFT_CHROMIUM ?? "/usr/bin/chromium", args: ARGS });
}

/**
 * Return a browser, a page that is not at the server yet, its uncaught errors, and its errors with those that Chromium
 * logs and with refused requests.
 */
export async function newSession({ width = 900, height = 600, timeout = 15_000 } = {}) {
  const browser = await launch();
  const page = await browser.newPage({ viewport: { width, height }, reducedMotion: "reduce" });
  page.setDefaultTimeout(timeout);
  const uncaught = [];
  const errors = [];
  page.on("pageerror", (error) => {
    uncaught.push(String(error.stack));
    errors.push(String(error.stack));
  });
  page.on("console", (message) => { if (message.type() === "error") errors.push(message.text()); });
  page.on("response", (response) => { if (response.status() >= 400) errors.push(`${response.status()} ${response.url()}`); });
  return { browser, page, uncaught, errors };
}

/** Wait until the map has read and drawn everything. */
export async function settled(page) {
  await page.waitForTimeout(200);
  await page.locator(".map[aria-busy=false]").waitFor();
}

/** Wait until the server has all that was drawn. */
export async function saved(page) {
  await page.waitForTimeout(100);
  await page.locator("header .status", { hasText: /^Saved$/ }).waitFor();
}

/** Set a range input as a drag does: `input` events, then `change`. */
export function drag(slider, values) {
  return slider.evaluate((element, each) => {
    for (const value of each) {
      element.value = String(value);
      element.dispatchEvent(new Event("input", { bubbles: true }));
    }
    element.dispatchEvent(new Event("change", { bubbles: true }));
  }, values);
}

/** Save what the page shows in the folder that GEOGRAFT_SCREENSHOTS names, if it names one. */
export async function picture(page, name) {
  if (GEOGRAFT_SCREENSHOTS) await page.screenshot({ path: `${GEOGRAFT_SCREENSHOTS}/${name}.png` });
}
