import { describe, expect, it } from "vitest";

import { errorStops, firstStep, POSITIVE, probabilityStops, STEPS, thresholdStops } from "../src/ramps.ts";

/** What the shader does: interpolate between stops, hold the first and the last. */
function alphaAt(stops: [number, string][], value: number): number {
  const alpha = (color: string) => (color.startsWith("rgba") ? Number(color.split(",")[3]?.replace(")", "")) : 1);
  const after = stops.findIndex(([step]) => step > value);
  const low = stops[after < 0 ? stops.length - 1 : Math.max(0, after - 1)];
  const high = stops[after < 0 ? stops.length - 1 : after];
  if (!low || !high) throw new Error("no stops");
  const t = high[0] === low[0] ? 0 : Math.max(0, (value - low[0]) / (high[0] - low[0]));
  return alpha(low[1]) * (1 - t) + alpha(high[1]) * t;
}

describe("thresholdStops", () => {
  it.each([0, 0.002, 0.004, 0.28, 0.44, 0.5, 0.996, 1])("shows exactly the steps at or above %s, and no value never", (threshold) => {
    const stops = thresholdStops(threshold, "#009E73");
    for (let step = 0; step <= 255; step++) {
      const shown = step <= STEPS && step / STEPS >= threshold - 1e-9;
      expect(alphaAt(stops, step), `step ${step}`).toBe(shown ? 1 : 0);
    }
  });

  it("shows nothing above 1", () => {
    const stops = thresholdStops(1.01, "#009E73");
    for (let step = 0; step <= 255; step++) expect(alphaAt(stops, step)).toBe(0);
  });

  it("has strictly increasing steps, as MapLibre demands", () => {
    for (let i = 0; i <= 110; i++) {
      const steps = thresholdStops(i / 100, "#009E73").map(([step]) => step);
      expect(steps).toEqual([...new Set(steps)].sort((a, b) => a - b));
    }
  });
});

describe("errorStops", () => {
  const [right, missed, wrong] = ["#009E73", "#0072B2", "#D55E00"];

  /** The colour at a value that tiles have: there, a stop or equal stops on both sides. */
  function colorAt(stops: [number, string][], value: number): string {
    const low = stops.findLast(([step]) => step <= value) ?? stops[0];
    const high = stops.find(([step]) => step >= value) ?? stops.at(-1);
    if (!low || !high || low[1] !== high[1]) throw new Error(`a mixture at ${value}`);
    return low[1];
  }

  it.each([0, 0.002, 0.004, 0.28, 0.44, 0.5, 0.996, 1, 1.01])("are right, missed, wrong or clear at %s, and clear without value", (threshold) => {
    const stops = errorStops(threshold, right, missed, wrong);
    for (let step = 0; step <= STEPS; step++) {
      const mapped = step / STEPS >= threshold - 1e-9;
      expect(colorAt(stops, step)).toBe(mapped ? wrong : "rgba(0, 158, 115, 0)");
      expect(colorAt(stops, POSITIVE + step)).toBe(mapped ? right : missed);
    }
    expect(colorAt(stops, 255)).toBe("rgba(0, 158, 115, 0)");
    const steps = stops.map(([step]) => step);
    expect(steps).toEqual([...new Set(steps)].sort((a, b) => a - b));
  });
});

describe("firstStep", () => {
  it("takes no step more because of floating point", () => {
    for (let step = 0; step <= STEPS; step++) expect(firstStep(step / STEPS)).toBe(step);
  });
});

describe("probabilityStops", () => {
  it("is transparent at 0 and for no value", () => {
    const stops = probabilityStops("#009E73");
    expect(alphaAt(stops, 0)).toBe(0);
    expect(alphaAt(stops, 125)).toBeCloseTo(0.5);
    expect(alphaAt(stops, 250)).toBe(1);
    expect(alphaAt(stops, 255)).toBe(0);
  });
});
