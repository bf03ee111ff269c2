// What a dashboard of Darkroom may have, from Grafana's own types: `infra/check-watched` compiles each dashboard as a value of
// `DarkroomDashboard`. The types of @grafana/schema leave open what belongs to a kind of panel, to a data source and to units;
// here that is closed, for the kinds that are used. Nothing of this runs.
import type * as grafana from "@grafana/schema";
import type { Options as StatOptions } from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type {
  FieldConfig as TableFields,
  Options as TableOptions,
} from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type {
  FieldConfig as TimeSeriesFields,
  Options as TimeSeriesOptions,
} from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";
import type * as prometheus from "@grafana/grafana-foundation-sdk/prometheus";
import * as units from "@grafana/grafana-foundation-sdk/units";

// A type as JSON has it: the text of an enum's member instead of the member.
type Json<T> = T extends string ? `${T}`
  : T extends (infer Item)[] ? Json<Item>[]
  : T extends (...unused: never[]) => unknown ? never
  : T extends object ? { [Key in keyof T]: Json<T[Key]> }
  : T;

type Require<T, Key extends keyof T> = Omit<T, Key> & { [K in Key]-?: NonNullable<T[K]> };

type Query = Require<Json<Omit<prometheus.Dataquery, "_implementsDataqueryVariant">>, "expr" | "legendFormat" | "refId" | "datasource">;

type Unit = (typeof units)[keyof typeof units];
type Defaults<Custom> = Omit<Json<grafana.FieldConfig>, "unit" | "custom"> & { unit: Unit; custom?: Json<Custom> };

type PanelOf<Type extends string, Options, Custom> =
  & Omit<Require<Json<grafana.Panel>, "id" | "gridPos" | "title" | "description" | "datasource">, "type" | "options" | "targets" | "fieldConfig">
  & {
    type: Type;
    options: Json<Options>;
    targets: [Query, ...Query[]];
    fieldConfig: { defaults: Defaults<Custom>; overrides: Json<grafana.FieldConfigSource>["overrides"] };
  };

type Panel =
  | PanelOf<"timeseries", TimeSeriesOptions, TimeSeriesFields>
  | PanelOf<"stat", StatOptions, Record<string, never>>
  | PanelOf<"table", TableOptions, TableFields>;

type Row = Omit<Require<Json<grafana.RowPanel>, "title" | "gridPos">, "panels"> & { panels: Panel[] };

// The Prometheus data source reads the two formats, which the common type does not have.
type Annotation = Omit<Json<grafana.AnnotationQuery>, "target"> & {
  target: Json<Omit<prometheus.Dataquery, "_implementsDataqueryVariant">>;
  titleFormat: string;
  textFormat: string;
};

// A variable that was never used has no current value.
type Variable = Omit<Json<grafana.VariableModel>, "current"> & { current: Json<grafana.VariableModel>["current"] | Record<string, never> };

export type DarkroomDashboard =
  & Omit<Require<Json<grafana.Dashboard>, "uid" | "title" | "description" | "tags" | "time">, "panels" | "templating" | "annotations">
  & { panels: (Panel | Row)[]; templating: { list: Variable[] }; annotations: { list: Annotation[] } };
