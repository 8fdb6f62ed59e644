/**
 * Import of files on the page, with a real server in Chromium: chosen, dropped, refused.
 *
 * node tests/import.mjs ADDRESS GOOD BAD
 *
 * The address has its token; GOOD is a mask, BAD a file that is refused. Prints what the page saw as JSON.
 */

import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const [, , address, good, bad] = process.argv;
const browser = await chromium.launch({
  executablePath: process.env.GEOGRAFT_CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"],
});
const page = await browser.newPage({ viewport: { width: 900, height: 700 }, reducedMotion: "reduce" });
page.setDefaultTimeout(30_000);
const errors = [];
page.on("pageerror", (error) => errors.push(String(error.stack)));
const picture = (name) => page.screenshot({ path: process.env.GEOGRAFT_SCREENSHOTS ? `${process.env.GEOGRAFT_SCREENSHOTS}/${name}.png` : "/dev/null", type: "png" });

try {
  await page.goto(address);
  await page.getByRole("tab", { name: "Labels" }).click();
  await page.getByRole("button", { name: "Import …" }).click();
  const dialog = page.getByRole("dialog", { name: "Import labels" });
  const start = dialog.getByRole("button", { name: "Import" });
  const disabled = await start.isDisabled();
  await picture("empty");
  await dialog.getByLabel("File").setInputFiles(bad);
  await start.click();
  await dialog.getByRole("alert").filter({ hasText: /./ }).waitFor();
  const refused = await dialog.getByRole("alert").innerText();
  await picture("refused");
  await page.keyboard.press("Escape");

  const content = readFileSync(good).toString("base64");
  await page.evaluate((bytes) => {
    const list = new DataTransfer();
    list.items.add(new File([Uint8Array.from(atob(bytes), (each) => each.charCodeAt(0))], "mask.png"));
    for (const type of ["dragover", "drop"]) document.querySelector("main").dispatchEvent(new DragEvent(type, { dataTransfer: list, bubbles: true, cancelable: true }));
  }, content);
  await dialog.getByLabel("Class").selectOption("trees");
  await start.click();
  await picture("sending");
  const notice = page.locator(".notices").filter({ hasText: /imported/ });
  await notice.waitFor();
  const said = await notice.innerText();
  await page.getByRole("button", { name: /^trees/ }).filter({ hasText: "4" }).waitFor();
  await picture("done");
  console.log(JSON.stringify({ disabled, refused, said, open: await dialog.isVisible(), errors }));
} finally {
  await browser.close();
}
