import "./voice.css";
import { render } from "preact";
import "../../src/lib/theme";
import { App } from "./app";

render(<App />, document.getElementById("app")!);
