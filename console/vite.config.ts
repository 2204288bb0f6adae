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
        entryFileNames: "console-[hash].js",
        chunkFileNames: "[name]-[hash].js",
        assetFileNames: "[name]-[hash][extname]",
      },
    },
  },
  server: { proxy: { "/v1": "http://127.0.0.1:8000", "/console/session": "http://127.0.0.1:8000" } },
});
