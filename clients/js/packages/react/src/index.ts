export { useRow, useRows } from "./hooks.js";
export type { OneRow, UseRowOptions, UseRowsOptions } from "./hooks.js";
export { RowsignalProvider } from "./provider.js";
export type { Defaults, RowsignalProviderProps } from "./provider.js";
export type { Rows } from "./registry.js";
