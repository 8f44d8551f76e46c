import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const service = "http://127.0.0.1:8000";

// Pages and service have one origin: the development server passes on what is not a page.
export default defineConfig({
  plugins: [react()],
  server: { proxy: { "/v1": service, "/orders": service } },
});
