import { defineConfig } from "vitest/config";

import { stamp } from "./bundle.ts";

const root = import.meta.dirname;

export default defineConfig({
  root,
  base: "/",
  plugins: [stamp(root)],
  build: {
    outDir: process.env["GEOGRAFT_PAGE_OUT"] ?? "../src/geograft/server/page",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 1500,
    rolldownOptions: {
      output: {
        // The libraries keep their own files, whose names and content change only with their versions.
        codeSplitting: {
          groups: [
            { name: "maplibre", test: /node_modules\/maplibre-gl/ },
            { name: "draw", test: /node_modules\// },
          ],
        },
      },
    },
  },
  test: { include: ["tests/*.test.ts"] },
});
