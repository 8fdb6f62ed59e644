/**
 * The page with a real server in Chromium: draws, cuts and deletes labels, moves the threshold, reads a pixel.
 *
 * node tests/serve.mjs ADDRESS
 *
 * The address has its token. Prints what the page saw as JSON; tests/server/test_page.py compares it with the files.
 */

import { drag, newSession, picture, saved, settled } from "./session.mjs";

const { browser, page, errors } = await newSession();
const requests = [];
const hosts = new Set();
page.on("request", (request) => {
  const { pathname, host, protocol } = new URL(request.url());
  requests.push(pathname);
  if (protocol.startsWith("http")) hosts.add(host);
});

try {
  await page.goto(process.argv[2]);
  await page.getByRole("tab", { name: "Layers" }).waitFor();
  await settled(page);

  const slider = page.getByRole("slider", { name: /Threshold/ });
  const before = requests.length;
  const measured = page.waitForResponse((response) => response.url().includes("/area?threshold=0.7"));
  await drag(slider, [0.6, 0.7]);
  const area = await (await measured).json();
  await settled(page);
  const tileRequests = requests.slice(before).filter((path) => path.endsWith(".png"));

  const box = await page.locator(".map").boundingBox();
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  await page.mouse.click(x, y);
  await page.locator(".values dd").first().waitFor();
  const values = await page.locator(".values").innerText();

  await page.keyboard.press("r");
  await page.mouse.click(x + 20, y - 150);
  await page.mouse.click(x + 120, y - 60);
  await saved(page);
  await page.keyboard.press("s");
  for (const [dx, dy] of [[45, -125], [95, -125], [95, -85]]) await page.mouse.click(x + dx, y + dy);
  await page.keyboard.press("Enter");
  await saved(page);
  await page.keyboard.press("a");
  await page.mouse.click(x - 150, y + 60);
  await page.mouse.click(x - 60, y + 150);
  await saved(page);
  await page.getByRole("tab", { name: "Labels" }).click();
  await page.getByLabel("Everything inside is labelled").check();
  await saved(page);
  await page.keyboard.press("Control+z");
  await saved(page);
  await page.keyboard.press("Control+Shift+z");
  await saved(page);
  await picture(page, "serve");
  await page.reload();
  await page.getByRole("tab", { name: "Labels" }).click();
  await page.getByRole("button", { name: /trees/ }).waitFor();
  await settled(page);
  const counts = await page.getByRole("button", { name: /trees/ }).innerText();

  // Nothing is loaded from the basemap's server before the user has agreed.
  await page.getByRole("tab", { name: "Layers" }).click();
  await page.getByRole("button", { name: "Show a basemap" }).click();
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByRole("button", { name: "Show a basemap" }).click();
  await settled(page);
  const hostsBefore = [...hosts];
  await page.getByRole("button", { name: /^Load from / }).click();
  await page.getByText("A server of this test").waitFor();
  await settled(page);
  const hostsAfter = [...hosts];
  await page.getByRole("button", { name: "Hide the basemap" }).click();
  await page.locator(".credit").waitFor({ state: "hidden" });
  console.log(JSON.stringify({ hostsBefore, hostsAfter, area, tileRequests, values, counts, errors }));
} finally {
  await browser.close();
}
