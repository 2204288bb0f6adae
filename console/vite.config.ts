import { defineConfig } from "vite";

// The assets are committed: the same sources must give the same bytes.
export default defineConfig({
  base: "/console/",
  build: {
    outDir: "../src/vermilion/serving/console/assets",
    emptyOutDir: true,
    assetsDir: "",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
    rollupOptions: {
      output: {
        // No hashes in the names: a change of one file is a change of one file in the repository too.
        entryFileNames: "console.js",
        chunkFileNames: "[name].js",
        assetFileNames: "[name][extname]",
      },
    },
  },
  server: { proxy: { "/v1": "http://127.0.0.1:8000", "/console/session": "http://127.0.0.1:8000" } },
});
