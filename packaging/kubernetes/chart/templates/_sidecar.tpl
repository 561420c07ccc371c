{{/*
What a pod needs to have the agent in it. A chart of your own that has this one as a dependency includes these with `.Subcharts.forebay`
(docs/KUBERNETES.md shows the whole of it):

  forebay.sidecar             the container, one item of a list: of initContainers with sidecar.native, else of containers
  forebay.volumes             items of the pod's volumes
  forebay.socketMount         an item of your containers' volumeMounts
  forebay.volumeClaimTemplates   items of a StatefulSet's, with spool.kind claim
  forebay.podSecurityContext  the pod's
  forebay.terminationGracePeriodSeconds, forebay.podAnnotations, forebay.serviceAccountName
*/}}

{{- define "forebay.sidecar" -}}
- {{ include "forebay.container" . | indent 2 | trim }}
  {{- if .Values.sidecar.native }}
  # Started before the containers, ended after them: SIGTERM comes when they have ended, and is the drain. A preStop hook would run at
  # the beginning of the pod's end, beside theirs, and take the agent away while they still send.
  restartPolicy: Always
  {{- else }}
  # It is ended together with the others: it waits until they had their time, then SIGTERM is the drain.
  lifecycle:
    preStop:
      sleep:
        seconds: {{ .Values.workload.stopSeconds }}
  {{- end }}
{{- end }}

{{/* The agent's container without what belongs to one form. Also the DaemonSet's. */}}
{{- define "forebay.container" -}}
{{- $daemon := eq .Values.workload.kind "DaemonSet" -}}
{{- include "forebay.validate" . -}}
name: forebay
image: {{ include "forebay.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: ["run"]
env:
  - name: FOREBAY_LOG_FORMAT
    value: {{ .Values.logFormat }}
  - name: FOREBAY_DRAIN_TIMEOUT
    value: {{ .Values.drainSeconds }}s
  - name: FOREBAY_LISTEN__SOCKET
    value: /run/forebay/forebay.sock
  - name: FOREBAY_LISTEN__HTTP
    value: {{ ternary "127.0.0.1:4710" "" (and .Values.sidecar.http (not $daemon)) | quote }}
  {{- if $daemon }}
  - name: FOREBAY_LISTEN__HTTP_SOCKET
    value: /run/forebay/http.sock
  {{- end }}
  - name: FOREBAY_LISTEN__ADMIN
    value: 127.0.0.1:4711
  {{- if .Values.metrics.enabled }}
  - name: FOREBAY_LISTEN__METRICS
    value: 0.0.0.0:{{ .Values.metrics.port }}
  {{- end }}
  - name: FOREBAY_SPOOL__DIR
    value: /var/lib/forebay
  - name: FOREBAY_SPOOL__MAX_BYTES
    value: {{ .Values.spool.maxBytes }}
  - name: FOREBAY_SPOOL__DEAD_MAX_BYTES
    value: {{ .Values.spool.deadMaxBytes }}
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if .Values.metrics.enabled }}
ports:
  - name: forebay-metrics
    containerPort: {{ .Values.metrics.port }}
    protocol: TCP
{{- end }}
# The binary asks its own admin listener, on loopback. Its own limit is 5 s.
startupProbe:
  exec:
    command: ["/usr/bin/forebay", "status", "--quiet"]
  periodSeconds: 1
  timeoutSeconds: 6
  failureThreshold: {{ .Values.sidecar.startupSeconds }}
{{- if .Values.sidecar.readiness }}
readinessProbe:
  exec:
    command: ["/usr/bin/forebay", "status", "--quiet"]
  periodSeconds: 10
  timeoutSeconds: 6
  failureThreshold: 3
{{- end }}
# Whether it answers at all: an agent whose disk is full or whose Kinesis is away is not mended by a restart.
livenessProbe:
  exec:
    command: ["/usr/bin/forebay", "status", "--json"]
  periodSeconds: 20
  timeoutSeconds: 6
  failureThreshold: 3
resources:
  {{- $resources := deepCopy .Values.sidecar.resources }}
  {{- if eq .Values.spool.kind "emptyDir" }}
  {{- $_ := set $resources "requests" (merge (dict "ephemeral-storage" .Values.spool.size) (default dict $resources.requests)) }}
  {{- end }}
  {{- toYaml $resources | nindent 2 }}
securityContext:
  {{- if $daemon }}
  runAsNonRoot: {{ ne (int .Values.daemonset.runAsUser) 0 }}
  runAsUser: {{ .Values.daemonset.runAsUser }}
  runAsGroup: {{ .Values.daemonset.group }}
  {{- else }}
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  {{- end }}
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: ["ALL"]
  seccompProfile:
    type: RuntimeDefault
volumeMounts:
  - name: forebay-config
    mountPath: /etc/forebay
    readOnly: true
  - name: forebay-socket
    mountPath: /run/forebay
  - name: forebay-spool
    mountPath: /var/lib/forebay
  {{- if .Values.secret }}
  - name: forebay-secret
    mountPath: /etc/forebay-secrets
    readOnly: true
  {{- end }}
{{- end }}

{{- define "forebay.volumes" -}}
- name: forebay-config
  configMap:
    name: {{ include "forebay.fullname" . }}
{{- if .Values.secret }}
- name: forebay-secret
  secret:
    secretName: {{ .Values.secret }}
    # The agent's group, not everybody.
    defaultMode: 0440
{{- end }}
{{- if eq .Values.workload.kind "DaemonSet" }}
- name: forebay-socket
  hostPath:
    path: {{ .Values.daemonset.socketDir }}
    type: DirectoryOrCreate
- name: forebay-spool
  hostPath:
    path: {{ .Values.daemonset.spoolDir }}
    type: DirectoryOrCreate
{{- else }}
- name: forebay-socket
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- if eq .Values.spool.kind "emptyDir" }}
# Gone with the pod: what was receipted and not delivered by then is lost with it.
- name: forebay-spool
  emptyDir:
    sizeLimit: {{ .Values.spool.size }}
{{- else if eq .Values.spool.kind "ephemeral" }}
# Gone with the pod, as an emptyDir is.
- name: forebay-spool
  ephemeral:
    volumeClaimTemplate:
      spec:
        {{- include "forebay.claim" . | nindent 8 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "forebay.claim" -}}
accessModes: ["ReadWriteOnce"]
{{- with .Values.spool.storageClassName }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .Values.spool.size }}
{{- end }}

{{- define "forebay.volumeClaimTemplates" -}}
- metadata:
    name: forebay-spool
  spec:
    {{- include "forebay.claim" . | nindent 4 }}
{{- end }}

{{- define "forebay.socketMount" -}}
- name: forebay-socket
  mountPath: /run/forebay
{{- end }}

{{/* fsGroup: the socket is 0660, and the group of its directory is every container's. */}}
{{- define "forebay.podSecurityContext" -}}
{{- $own := dict "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- if ne .Values.workload.kind "DaemonSet" -}}
{{- $own = merge $own (dict "runAsNonRoot" true "fsGroup" 65532 "fsGroupChangePolicy" "OnRootMismatch") -}}
{{- end -}}
{{- toYaml (mergeOverwrite $own .Values.workload.podSecurityContext) }}
{{- end }}

{{- define "forebay.terminationGracePeriodSeconds" -}}
{{- $stop := ternary 0 (int .Values.workload.stopSeconds) (eq .Values.workload.kind "DaemonSet") -}}
{{- add $stop (int .Values.drainSeconds) 10 }}
{{- end }}

{{/* A changed configuration is a new pod. */}}
{{- define "forebay.podAnnotations" -}}
checksum/forebay-config: {{ .Values.config | sha256sum }}
{{- end }}
