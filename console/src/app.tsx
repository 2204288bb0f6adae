/** The frame around every view: navigation, who is signed in, whether the model is there. */

import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { loadSession, session, signOut, signedIn } from "./lib/api";
import { loadModels, models, readiness } from "./lib/models";
import { route } from "./lib/router";
import { theme, toggle } from "./lib/theme";
import { Chat } from "./playground/chat";
import { SignIn } from "./service/sign_in";

type Load = () => Promise<ComponentType>;
interface View {
  name: string;
  title: string;
  load: Load;
  accounts?: boolean;
}

const PLAYGROUND: View[] = [
  { name: "chat", title: "Chat", load: async () => Chat },
  { name: "complete", title: "Complete", load: async () => (await import("./playground/complete")).Complete },
  { name: "infill", title: "Infill", load: async () => (await import("./playground/infill")).Infill },
  { name: "edit", title: "Next edit", load: async () => (await import("./playground/edit")).NextEdit },
  { name: "structured", title: "Structured output", load: async () => (await import("./playground/structured")).Structured },
  { name: "tools", title: "Tools", load: async () => (await import("./playground/tools")).Tools },
  { name: "race", title: "Race", load: async () => (await import("./playground/race")).Race },
];
const SERVICE: View[] = [
  { name: "models", title: "Models", load: async () => (await import("./service/models")).Models },
  { name: "tuning", title: "Fine-tuning", load: async () => (await import("./service/tuning")).Tuning },
  { name: "files", title: "Files and batches", load: async () => (await import("./service/files")).Files },
  { name: "health", title: "Health", load: async () => (await import("./service/health")).Health },
];
const ACCOUNT: View[] = [
  { name: "account", title: "Organisation", load: async () => (await import("./service/account")).Account },
  { name: "keys", title: "Keys", load: async () => (await import("./service/keys")).Keys },
  { name: "usage", title: "Usage", load: async () => (await import("./service/usage")).Usage },
  { name: "invoices", title: "Invoices", load: async () => (await import("./service/invoices")).Invoices },
];
const VIEWS = [...PLAYGROUND, ...SERVICE, ...ACCOUNT];

export function App() {
  const [open, setOpen] = useState(false);
  const here = VIEWS.find((view) => view.name === route.value) ?? VIEWS[0]!;
  const inside = signedIn();
  useEffect(() => {
    loadSession().catch(() => (readiness.value = "gone"));
  }, []);
  useEffect(() => {
    if (inside) void loadModels();
  }, [inside, session.value?.key?.id]);
  useEffect(() => {
    setOpen(false);
    document.title = `${here.title} · Vermilion`;
  }, [here]);
  const now = session.value;
  return (
    <div class="shell">
      <a class="skip" href="#main" onClick={skip}>
        Skip to the content
      </a>
      <header>
        <a class="brand" href="#/chat">
          <Mark /> Vermilion
        </a>
        {inside && (
          <button type="button" class="menu" aria-expanded={open} aria-controls="nav" onClick={() => setOpen(!open)}>
            Menu
          </button>
        )}
        <Status />
        <button type="button" class="small" onClick={toggle}>
          {theme.value === "dark" ? "Light" : "Dark"}
        </button>
      </header>
      {inside && (
        <nav id="nav" class={open ? "open" : ""} aria-label="Views">
          <Group title="Playground" views={PLAYGROUND} here={here.name} />
          <Group title="Service" views={SERVICE} here={here.name} />
          {now?.accounts && <Group title={now.organisation?.name ?? "Account"} views={ACCOUNT} here={here.name} />}
          <p class="nav-foot">
            {now?.accounts && (
              <button type="button" class="small" onClick={() => void signOut()}>
                Sign out
              </button>
            )}
            <a href="/docs">API reference</a>
            <span class="hint">{now?.version}</span>
          </p>
        </nav>
      )}
      <main id="main" tabIndex={-1}>
        {now === undefined ? <p class="empty">Loading …</p> : inside ? <Shown view={here} key={here.name} /> : <SignIn />}
      </main>
    </div>
  );
}

/** The hash is taken by the router. */
function skip(event: MouseEvent): void {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

function Shown({ view }: { view: View }) {
  const [Loaded, setLoaded] = useState<ComponentType | undefined>(() => (view.name === "chat" ? Chat : undefined));
  useEffect(() => {
    void view.load().then((component) => setLoaded(() => component));
  }, [view]);
  return Loaded ? <Loaded /> : <p class="empty">Loading …</p>;
}

function Group({ title, views, here }: { title: string; views: View[]; here: string }) {
  return (
    <div class="group">
      <p class="group-title">{title}</p>
      <ul>
        {views.map((view) => (
          <li key={view.name}>
            <a href={`#/${view.name}`} aria-current={view.name === here ? "page" : undefined}>
              {view.title}
            </a>
          </li>
        ))}
      </ul>
    </div>
  );
}

function Status() {
  const state = readiness.value;
  const text = state === "ready" ? (models.value[0]?.id ?? "ready") : state === "loading" ? "loading the model" : "not reachable";
  if (!signedIn()) return <span class="status" />;
  return (
    <span class={`status ${state}`} role="status">
      <span class="dot" aria-hidden="true" /> {text}
    </span>
  );
}

function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="8" class="mark-ground" />
      <path d="M8 8h4l4 10 4-10h4l-6 14h-4z" class="mark-ink" />
      <rect x="8" y="24.5" width="4" height="2" class="mark-ink" />
      <rect x="14" y="24.5" width="4" height="2" class="mark-ink half" />
      <rect x="20" y="24.5" width="4" height="2" class="mark-ink faint" />
    </svg>
  );
}
