{{/* The pod of whatever the chart makes, with template and labels. */}}
{{- define "forebay.podTemplate" -}}
{{- $daemon := eq .Values.workload.kind "DaemonSet" -}}
metadata:
  labels:
    {{- /* No versions: a chart that changes nothing of the pod starts none anew. */}}
    {{- include "forebay.selectorLabels" . | nindent 4 }}
    {{- with .Values.workload.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- include "forebay.podAnnotations" . | nindent 4 }}
    {{- with .Values.workload.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "forebay.serviceAccountName" . }}
  automountServiceAccountToken: {{ .Values.serviceAccount.automountToken }}
  terminationGracePeriodSeconds: {{ include "forebay.terminationGracePeriodSeconds" . }}
  {{- if eq .Values.workload.kind "Job" }}
  restartPolicy: OnFailure
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "forebay.podSecurityContext" . | nindent 4 }}
  {{- if $daemon }}
  containers:
    - {{ include "forebay.container" . | indent 6 | trim }}
  {{- else }}
  {{- if .Values.sidecar.native }}
  initContainers:
    {{- include "forebay.sidecar" . | nindent 4 }}
  {{- end }}
  containers:
    {{- toYaml .Values.workload.containers | nindent 4 }}
    {{- if not .Values.sidecar.native }}
    {{- include "forebay.sidecar" . | nindent 4 }}
    {{- end }}
  {{- end }}
  volumes:
    {{- include "forebay.volumes" . | nindent 4 }}
    {{- with .Values.workload.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.workload.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.workload.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.workload.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.workload.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
{{- end }}
