import { useState } from "preact/hooks";
import { type Key, post, session, signIn } from "../lib/api";
import { Card, Copy, Problem, TextInput } from "../parts/controls";

interface SignedUp {
  organisation: { id: string; name: string };
  key: Key & { secret: string };
  free_tokens: number;
}

export function SignIn() {
  const [key, setKey] = useState("");
  const [error, setError] = useState<unknown>();
  const [busy, setBusy] = useState(false);
  const enter = async (secret: string) => {
    setBusy(true);
    setError(undefined);
    try {
      await signIn(secret);
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };
  return (
    <div class="view narrow">
      <h1>Sign in</h1>
      <Card>
        <form
          class="stack"
          onSubmit={(event) => {
            event.preventDefault();
            const secret = key.trim();
            setKey("");
            void enter(secret);
          }}
        >
          <TextInput
            label="API key"
            type="password"
            autocomplete="off"
            required
            value={key}
            set={setKey}
            hint="It is exchanged for a session that this page's scripts cannot read, and kept nowhere."
          />
          <button type="submit" class="primary" disabled={busy || !key.trim()}>
            Sign in
          </button>
        </form>
        <Problem error={error} />
      </Card>
      {session.value?.sign_up ? <SignUp enter={enter} /> : <p class="hint">Nobody can sign up here; ask whoever runs this service for a key.</p>}
    </div>
  );
}

function SignUp({ enter }: { enter: (secret: string) => Promise<void> }) {
  const [email, setEmail] = useState("");
  const [organisation, setOrganisation] = useState("");
  const [made, setMade] = useState<SignedUp>();
  const [error, setError] = useState<unknown>();
  const send = async () => {
    setError(undefined);
    try {
      setMade(await post<SignedUp>("/v1/accounts", { email, organisation }));
    } catch (failure) {
      setError(failure);
    }
  };
  if (made) {
    return (
      <Card title={`Welcome, ${made.organisation.name}`}>
        <p>
          This is your key. It is shown this once: copy it to a safe place. You have {made.free_tokens.toLocaleString("en")} free tokens.
        </p>
        <code class="secret">{made.key.secret}</code>
        <div class="actions">
          <Copy text={made.key.secret} label="Copy key" />
          <button type="button" class="primary" onClick={() => void enter(made.key.secret)}>
            I have kept it, go on
          </button>
        </div>
      </Card>
    );
  }
  return (
    <Card title="New here?">
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void send();
        }}
      >
        <TextInput label="E-mail" type="email" autocomplete="email" required value={email} set={setEmail} />
        <TextInput label="Organisation" autocomplete="organization" value={organisation} set={setOrganisation} />
        <button type="submit" disabled={!email}>
          Sign up
        </button>
      </form>
      <Problem error={error} />
    </Card>
  );
}
