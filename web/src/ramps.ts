/**
 * Colours of probabilities, computed on the GPU by a color-relief layer: moving the threshold requests no tile.
 * Tiles hold probability in 1/250 (0 to 250); 255 is no value.
 */

import type { ExpressionSpecification } from "maplibre-gl";

export const STEPS = 250;
const NO_VALUE = STEPS + 1;

/** Return the lowest step that belongs to the class at a threshold from 0 to 1. */
export function firstStep(threshold: number): number {
  // Rounded first: 0.28 * 250 is 70.00000000000001, and step 70 belongs to a threshold of 0.28.
  return Math.max(0, Math.ceil(Number((threshold * STEPS).toFixed(6))));
}

/** Return [step, colour] pairs: transparent below the threshold and for no value, `color` above. */
export function thresholdStops(threshold: number, color: string): [number, string][] {
  const clear = withAlpha(color, 0);
  const first = firstStep(threshold);
  if (first > STEPS) return [[0, clear], [NO_VALUE, clear]];
  // A step of a ramp that can only interpolate: two stops one step apart, between which no tile has a value.
  const below: [number, string][] = first === 0 ? [] : [[first - 1, clear]];
  const top: [number, string][] = first === STEPS ? [] : [[STEPS, color]];
  return [...below, [first, color], ...top, [NO_VALUE, clear]];
}

/** Return [step, colour] pairs from transparent at 0 to `color` at 1. */
export function probabilityStops(color: string): [number, string][] {
  return [[0, withAlpha(color, 0)], [STEPS, color], [NO_VALUE, withAlpha(color, 0)]];
}

export const POSITIVE = 256; // added to the step where the labels have the class

/** Return [step, colour] pairs of errors at a threshold: of what the map has, right or not, and of what it lacks. */
export function errorStops(threshold: number, right: string, missed: string, wrong: string): [number, string][] {
  const first = firstStep(threshold);
  const half = (from: number, below: string, above: string): [number, string][] => {
    if (first > STEPS) return [[from, below], [from + STEPS, below]];
    const low: [number, string][] = first === 0 ? [] : first === 1 ? [[from, below]] : [[from, below], [from + first - 1, below]];
    const high: [number, string][] = first === STEPS ? [] : [[from + STEPS, above]];
    return [...low, [from + first, above], ...high];
  };
  const clear = withAlpha(right, 0);
  return [...half(0, clear, wrong), [NO_VALUE, clear], [POSITIVE - 1, clear], ...half(POSITIVE, missed, right)];
}

export function rampExpression(stops: [number, string][]): ExpressionSpecification {
  return ["interpolate", ["linear"], ["elevation"], ...stops.flat()] as ExpressionSpecification;
}

/** Return a #rrggbb colour with an alpha from 0 to 1. */
export function withAlpha(color: string, alpha: number): string {
  const [r, g, b] = [1, 3, 5].map((start) => Number.parseInt(color.slice(start, start + 2), 16));
  return `rgba(${r ?? 0}, ${g ?? 0}, ${b ?? 0}, ${alpha})`;
}
