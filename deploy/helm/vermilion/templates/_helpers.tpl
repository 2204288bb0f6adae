{{- define "vermilion.name" -}}
{{- if contains "vermilion" .Release.Name }}{{ .Release.Name | trunc 53 | trimSuffix "-" }}{{ else }}{{ printf "%s-vermilion" .Release.Name | trunc 53 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "vermilion.selector" -}}
app.kubernetes.io/name: vermilion
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vermilion.labels" -}}
{{ include "vermilion.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "vermilion.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "vermilion.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "vermilion.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "vermilion.accounts" -}}
- name: VERMILION_ACCOUNTS
  valueFrom: {secretKeyRef: {name: {{ .Values.accounts.existingSecret }}, key: accounts-url}}
- name: VERMILION_SIGNING_SECRET
  valueFrom: {secretKeyRef: {name: {{ .Values.accounts.existingSecret }}, key: signing-secret}}
{{- end }}

{{- define "vermilion.check" -}}
{{- if not (or .Values.accounts.existingSecret .Values.accounts.open) }}
{{- fail "Set accounts.existingSecret, so that every request needs a key, or accounts.open=true if whoever reaches the service may use it." }}
{{- end }}
{{- if and .Values.accounts.existingSecret .Values.accounts.open }}
{{- fail "A service with accounts is not open: set accounts.existingSecret or accounts.open, not both." }}
{{- end }}
{{- if and .Values.cache.persistent (or .Values.autoscaling.enabled (gt (int .Values.replicas) 1)) }}
{{- fail "cache.persistent needs replicas=1 and no autoscaling: one service at a time may use its files and jobs." }}
{{- end }}
{{- end }}
