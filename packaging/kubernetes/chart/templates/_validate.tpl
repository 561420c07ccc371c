{{/* What the schema cannot say: values that do not go together. */}}
{{- define "forebay.validate" -}}
{{- if not (contains "[[stream]]" .Values.config) -}}
{{- fail "config: it names no [[stream]]; give the agent's configuration, such as --set-file config=forebay.toml" -}}
{{- end -}}
{{- $kind := .Values.workload.kind -}}
{{- if and (eq .Values.spool.kind "claim") (not (has $kind (list "StatefulSet" ""))) -}}
{{- fail (printf "spool.kind: claim needs workload.kind StatefulSet, not %s: each replica needs a claim of its own" $kind) -}}
{{- end -}}
{{- if ne (eq .Values.spool.kind "hostPath") (eq $kind "DaemonSet") -}}
{{- fail "spool.kind: hostPath goes with workload.kind DaemonSet, and only with it" -}}
{{- end -}}
{{- if and (has $kind (list "Deployment" "StatefulSet" "Job")) (not .Values.workload.containers) -}}
{{- fail (printf "workload.containers: a %s needs your containers" $kind) -}}
{{- end -}}
{{- range .Values.workload.containers -}}
{{- if eq .name "forebay" -}}
{{- fail "workload.containers: the name forebay is the agent's" -}}
{{- end -}}
{{- end -}}
{{- if and (eq $kind "Job") (not .Values.sidecar.native) -}}
{{- fail "sidecar.native: a Job needs the native form; beside a container that never ends it would never be complete" -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled (not .Values.metrics.enabled) -}}
{{- fail "metrics.podMonitor.enabled: there is nothing to read without metrics.enabled" -}}
{{- end -}}
{{- $ours := list "FOREBAY_LISTEN__SOCKET" "FOREBAY_LISTEN__HTTP" "FOREBAY_LISTEN__HTTP_SOCKET" "FOREBAY_LISTEN__ADMIN" "FOREBAY_LISTEN__METRICS" "FOREBAY_SPOOL__DIR" "FOREBAY_SPOOL__MAX_BYTES" "FOREBAY_SPOOL__DEAD_MAX_BYTES" "FOREBAY_DRAIN_TIMEOUT" "FOREBAY_LOG_FORMAT" "FOREBAY_CONFIG" -}}
{{- range .Values.env -}}
{{- if has .name $ours -}}
{{- fail (printf "env: the chart sets %s itself; drainSeconds, logFormat, spool, sidecar and metrics say to what" .name) -}}
{{- end -}}
{{- end -}}
{{- if ne $kind "DaemonSet" -}}
{{- $streams := sub (len (splitList "[[stream]]" .Values.config)) 1 -}}
{{- $needed := mul $streams (add (include "forebay.mib" .Values.spool.maxBytes) (include "forebay.mib" .Values.spool.deadMaxBytes)) -}}
{{- if le (int64 (include "forebay.mib" .Values.spool.size)) $needed -}}
{{- fail (printf "spool.size: %s is not above what the spools of %d streams may take, maxBytes and deadMaxBytes each: %d MiB" .Values.spool.size $streams $needed) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A size such as 3Gi or 2GiB, in MiB. */}}
{{- define "forebay.mib" -}}
{{- $factor := 1 -}}
{{- if contains "Gi" . -}}
{{- $factor = 1024 -}}
{{- else if contains "Ti" . -}}
{{- $factor = 1048576 -}}
{{- end -}}
{{- mul $factor (regexFind "^[0-9]+" . | int64) -}}
{{- end }}
