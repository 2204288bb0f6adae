import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

// The page of `vermilion voice`. The assets are committed: the same sources must give the same bytes.
export default defineConfig({
  root: "voice",
  base: "./",
  resolve: {
    // The transports bring a client of Daily's cloud, which would load its code from there. Ours has no use for it.
    alias: { "@daily-co/daily-js": fileURLToPath(new URL("voice/src/no_daily.ts", import.meta.url)) },
  },
  build: {
    outDir: "../../src/vermilion/voice/page",
    emptyOutDir: true,
    assetsDir: "",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
    rollupOptions: {
      output: { entryFileNames: "voice.js", chunkFileNames: "[name].js", assetFileNames: "[name][extname]" },
    },
  },
  server: { proxy: { "/api": "http://127.0.0.1:7860", "/ws": { target: "ws://127.0.0.1:7860", ws: true } } },
});
