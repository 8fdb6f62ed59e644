/** A second map over the first, cut at a line that can be moved: the layer to compare with is left of it. */

import type { Map as MapLibreMap } from "maplibre-gl";

import { h } from "./dom.ts";

const STEP = 0.05;

export class Swipe {
  private readonly handle: HTMLElement;
  private readonly follow: () => void;
  private readonly main: MapLibreMap;
  private readonly over: MapLibreMap;
  private at = 0.5;

  /** `over` is a map without controls in an element over that of `main`. */
  constructor(main: MapLibreMap, over: MapLibreMap) {
    this.main = main;
    this.over = over;
    const props = { class: "swipe-handle", role: "slider", tabindex: 0, "aria-label": "Swipe", "aria-orientation": "horizontal" };
    this.handle = h("div", { ...props, "aria-valuemin": 0, "aria-valuemax": 100 }, h("span", { "aria-hidden": "true" }, "‹ ›"));
    this.handle.addEventListener("pointerdown", (event) => { this.startDrag(event); });
    this.handle.addEventListener("keydown", (event) => { this.pressKey(event); });
    main.getContainer().append(this.handle);
    this.follow = () => {
      over.jumpTo({ center: main.getCenter(), zoom: main.getZoom() });
    };
    main.on("move", this.follow);
    this.follow();
    this.place(this.at);
  }

  remove(): void {
    this.main.off("move", this.follow);
    this.handle.remove();
    const container = this.over.getContainer();
    this.over.remove();
    container.remove();
  }

  private place(at: number): void {
    this.at = Math.min(1, Math.max(0, at));
    this.handle.style.left = `${this.at * 100}%`;
    this.handle.setAttribute("aria-valuenow", String(Math.round(this.at * 100)));
    this.over.getContainer().style.clipPath = `inset(0 ${(1 - this.at) * 100}% 0 0)`;
  }

  private startDrag(event: PointerEvent): void {
    const box = this.main.getContainer().getBoundingClientRect();
    const move = ({ clientX }: PointerEvent) => { this.place((clientX - box.left) / box.width); };
    this.handle.setPointerCapture(event.pointerId);
    this.handle.addEventListener("pointermove", move);
    this.handle.addEventListener("lostpointercapture", () => { this.handle.removeEventListener("pointermove", move); }, { once: true });
  }

  private pressKey(event: KeyboardEvent): void {
    const step = { ArrowLeft: -STEP, ArrowRight: STEP, Home: -1, End: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.place(this.at + step);
  }
}
