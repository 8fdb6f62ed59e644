/**
 * Import of files on the page, with a real server in Chromium: chosen, dropped, refused.
 *
 * node tests/import.mjs ADDRESS GOOD BAD
 *
 * The address has its token; GOOD is a mask, BAD a file that is refused. Prints what the page saw as JSON.
 */

import { readFileSync } from "node:fs";

import { newSession, picture } from "./session.mjs";

const [, , address, good, bad] = process.argv;
const { browser, page, uncaught } = await newSession({ height: 700, timeout: 30_000 });

try {
  await page.goto(address);
  await page.getByRole("tab", { name: "Labels" }).click();
  await page.getByRole("button", { name: "Import …" }).click();
  const dialog = page.getByRole("dialog", { name: "Import labels" });
  const start = dialog.getByRole("button", { name: "Import" });
  const disabled = await start.isDisabled();
  await picture(page, "empty");
  await dialog.getByLabel("File").setInputFiles(bad);
  await start.click();
  await dialog.getByRole("alert").filter({ hasText: /./ }).waitFor();
  const refused = await dialog.getByRole("alert").innerText();
  await picture(page, "refused");
  await page.keyboard.press("Escape");

  const content = readFileSync(good).toString("base64");
  await page.evaluate((bytes) => {
    const list = new DataTransfer();
    list.items.add(new File([Uint8Array.from(atob(bytes), (each) => each.charCodeAt(0))], "mask.png"));
    for (const type of ["dragover", "drop"]) document.querySelector("main").dispatchEvent(new DragEvent(type, { dataTransfer: list, bubbles: true, cancelable: true }));
  }, content);
  await dialog.getByLabel("Class").selectOption("trees");
  await start.click();
  await picture(page, "sending");
  const notice = page.locator(".notices").filter({ hasText: /imported/ });
  await notice.waitFor();
  const said = await notice.innerText();
  await page.getByRole("button", { name: /^trees/ }).filter({ hasText: "4" }).waitFor();
  await picture(page, "done");
  console.log(JSON.stringify({ disabled, refused, said, open: await dialog.isVisible(), errors: uncaught }));
} finally {
  await browser.close();
}
