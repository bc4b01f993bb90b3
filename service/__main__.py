from service.launch import serve

serve()
