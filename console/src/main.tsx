import "./styles.css";
import { render } from "preact";
import { App } from "./app";
import "./lib/theme";

render(<App />, document.getElementById("app")!);
