// Following jobs as they happen: over NATS where the page may, else by server-sent events. What was missed before is the
// business of whoever follows: it is told when to look.

import { wsconnect, type NatsConnection } from "@nats-io/nats-core";
import { withKey } from "./api.ts";
import { EVENT_KINDS, subjectsOf, type CloudEvent, type Config } from "./wire.ts";

export type Transport = "connecting" | "nats" | "sse";

export interface Listener {
  /** Something happened to a job. */
  event(job: string, event: CloudEvent): void;
  /** From now on nothing of the job is missed. */
  caughtUp(job: string): void;
  transport(transport: Transport): void;
}

/** So long a connection to NATS may take before events are had otherwise. */
const CONNECT_TIMEOUT_MS = 3000;

export class Live {
  #transport: Transport = "connecting";
  #wanted: readonly string[] = [];
  #followed = new Map<string, () => void>();
  #connection: NatsConnection | undefined;
  #tenant = "";

  constructor(readonly listener: Listener) {}

  /** Chooses the transport. */
  async open(nats: Config["nats"]): Promise<void> {
    if (nats === null) return this.#use("sse");
    this.#tenant = nats.tenant;
    try {
      this.#connection = await wsconnect({
        servers: nats.url,
        name: "darkroom-console",
        timeout: CONNECT_TIMEOUT_MS,
        // The addresses that a server tells are those for clients that are not browsers.
        ignoreClusterUpdates: true,
        maxReconnectAttempts: -1,
        reconnectTimeWait: 2000,
      });
    } catch {
      return this.#use("sse");
    }
    this.#use("nats");
    void this.#watch(this.#connection);
  }

  /** Events come over NATS while it is there, and by server-sent events while it is not. */
  async #watch(connection: NatsConnection): Promise<void> {
    for await (const status of connection.status()) {
      if (status.type === "disconnect") this.#use("sse");
      else if (status.type === "reconnect") this.#use("nats");
    }
    this.#use("sse");
  }

  #use(transport: Transport): void {
    if (transport === this.#transport) return;
    for (const stop of this.#followed.values()) stop();
    this.#followed.clear();
    this.#transport = transport;
    this.listener.transport(transport);
    this.want(this.#wanted);
  }

  /**
   * Follows these jobs and no others, the most wanted first. By server-sent events it is only that one: browsers open six
   * connections to a host, over all tabs.
   */
  want(jobs: readonly string[]): void {
    this.#wanted = jobs;
    if (this.#transport === "connecting") return;
    const followed = this.#transport === "sse" ? jobs.slice(0, 1) : jobs;
    for (const [job, stop] of this.#followed) {
      if (followed.includes(job)) continue;
      stop();
      this.#followed.delete(job);
    }
    for (const job of followed) {
      if (!this.#followed.has(job)) this.#followed.set(job, this.#follow(job));
    }
  }

  /** Listens before a job is submitted, so that nothing of it is missed; only NATS lets one listen to what is not there yet. */
  async prepare(job: string): Promise<void> {
    if (this.#connection === undefined || this.#transport !== "nats") return;
    if (!this.#followed.has(job)) this.#followed.set(job, this.#follow(job));
    await this.#connection.flush().catch(() => {});
  }

  /** Whether its events come by themselves. */
  follows(job: string): boolean {
    return this.#followed.has(job);
  }

  #follow(job: string): () => void {
    return this.#connection !== undefined && this.#transport === "nats"
      ? this.#overNats(this.#connection, job)
      : this.#bySse(job);
  }

  #overNats(connection: NatsConnection, job: string): () => void {
    const subscriptions = subjectsOf(this.#tenant, job).map((subject) =>
      connection.subscribe(subject, {
        callback: (error, message) => {
          if (error === null) this.listener.event(job, message.json<CloudEvent>());
        },
      }),
    );
    // When the server has answered, it has the subscriptions.
    connection.flush().then(
      () => this.listener.caughtUp(job),
      () => {},
    );
    return () => {
      for (const subscription of subscriptions) if (!subscription.isClosed()) subscription.unsubscribe();
    };
  }

  /** Browsers come back by themselves with the last event's id; only an answer that is no stream ends it. */
  #bySse(job: string): () => void {
    const source = new EventSource(withKey(`/v1/jobs/${encodeURIComponent(job)}/events`));
    for (const kind of EVENT_KINDS) {
      source.addEventListener(kind, (message) => this.listener.event(job, JSON.parse(message.data) as CloudEvent));
    }
    source.addEventListener("open", () => this.listener.caughtUp(job));
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) this.#followed.delete(job);
    });
    return () => source.close();
  }
}
